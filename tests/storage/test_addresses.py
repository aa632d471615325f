"""What of an address may be shown, and which network addresses are public."""

import pytest

from refadgen.storage.addresses import is_public_address, redact_address, unsigned_address

_HASH = "0123456789abcdef0123456789abcdef"
_KEPT = (
    f"https://h/{_HASH}/a.jpg",
    f"https://h/{_HASH}/01234567/a.jpg",  # seconds of 1970
    f"https://h/{_HASH}/6928F180.jpg",
    f"https://h/202613280800/{_HASH}/a.jpg",  # no month
    f"https://h/p/202611280800/{_HASH}/a.jpg",
    f"https://h/20261128/{_HASH}/a.jpg",
    f"media/{_HASH}/6928F180/a.jpg",
    f"https://h/a.jpg?hash={_HASH}&time=1790000000",
)


@pytest.mark.parametrize(
    ("address", "shown"),
    [
        ("https://u:p@shop.example/a.png?sig=SECRET#SECRET", "https://shop.example/a.png"),
        ("HTTP://shop.example?sig=SECRET", "HTTP://shop.example"),
        ("s3://KEY:SECRET@bucket/a.png?X-Amz-Signature=SECRET", "s3://bucket/a.png"),
        ("ftp://u:SECRET@host/a", "ftp://host/a"),
        ("//u:SECRET@cdn.example/a.png?sig=SECRET", "//cdn.example/a.png"),
        ("https:u:SECRET@host/a?SECRET", "https:host/a"),
        ("http://[::1?sig=SECRET", "http://[::1"),
        ("https:\\\\u:SECRET@host/a?SECRET", "https:\\\\host/a"),
        ("cdn.example/a.jpg?X-Amz-Signature=SECRET", "cdn.example/a.jpg"),
        ("cdn.example/a.jpg?w=9&se=2&sig=SECRET", "cdn.example/a.jpg"),
        ("https://h/bcdn_token=SECRET&expires=1/a.jpg", "https://h/a.jpg"),
        (f"https://u:SECRET@h/202611280800/{_HASH}/a.jpg", "https://h/a.jpg"),
        ("https://h/exp=1~acl=*~hmac=0a1b/a.jpg", "https://h/a.jpg"),
        ("https://h/exp=1~acl=/v/*~hmac=0a1b/v/a.jpg", "https://h/v/a.jpg"),
        ("https://h/hdnts=st=1~exp=1~acl=/*~hmac=0a1b/a.jpg", "https://h/a.jpg"),
        ("images/what?.png", "images/what?.png"),
        ("img.php?sp=1&policy=2", "img.php?sp=1&policy=2"),
        ("/data/a#b.png", "/data/a#b.png"),
        ("C:\\a?.png", "C:\\a?.png"),
        ("data:image/png;base64,SECRETSECRET", "data:image/png;base64,… (34 characters)"),
        ("https://host/a\n<b>\x1b", "https://host/a\ufffd<b>\ufffd"),
    ],
)
def test_redacted(address, shown):
    assert redact_address(address) == shown
    assert "SECRET" not in redact_address(address)


def test_long_addresses_keep_both_ends():
    shown = redact_address("https://host/" + "x" * 500 + "/last.png", max_chars=60)
    assert len(shown) == 60
    assert shown.startswith("https://host/")
    assert shown.endswith("/last.png")


@pytest.mark.parametrize("ip", ["8.8.8.8", "2606:4700::1111", "::ffff:8.8.8.8", "64:ff9b::808:808"])
def test_public(ip):
    assert is_public_address(ip)


_NOT_PUBLIC = """
    127.0.0.1 127.9.9.9 0.0.0.0 10.1.2.3 172.16.0.1 192.168.1.1 169.254.169.254 100.64.0.1 100.100.100.200 192.0.0.192
    198.18.0.1 192.0.2.1 224.0.0.1 239.1.1.1 240.0.0.1 255.255.255.255 168.63.129.16 192.88.99.1
    :: ::1 ::127.0.0.1 ::ffff:127.0.0.1 ::ffff:169.254.169.254 fe80::1 fe80::1%eth0 fec0::1 fc00::1 fd00:ec2::254
    ff02::1 2002:7f00:1:: 2001::1 64:ff9b::7f00:1 64:ff9b::a9fe:a9fe 64:ff9b:1::1 2001:db8::1 3fff::1 5f00::1 nonsense
"""


@pytest.mark.parametrize("ip", _NOT_PUBLIC.split())
def test_not_public(ip):
    assert not is_public_address(ip)


@pytest.mark.parametrize(
    ("address", "name"),
    [
        ("https://h/a?w=9&X-Amz-Date=1&X-Amz-Signature=s", "https://h/a?w=9"),
        ("https://h/a?Expires=1&Signature=s&Key-Pair-Id=k#f", "https://h/a#f"),
        ("https://h/a?sv=1&se=2&sp=r&skoid=o&sktid=t&skt=a&ske=b&sks=b&skv=c&spr=https&sig=s&v=2", "https://h/a?v=2"),
        ("https://h/a?sv=1&ss=b&srt=o&sp=r&se=2&st=1&spr=https&sip=1.2.3.4&sig=s", "https://h/a"),
        ("https://h/a?AWSAccessKeyId=k&Signature=s&x-amz-security-token=t&Expires=1&v=2", "https://h/a?v=2"),
        ("https://h/a?Signature=s&Expires=1&sp=1", "https://h/a?sp=1"),
        ("https://h/img.php?sp=1&policy=2&expires=3", "https://h/img.php?sp=1&policy=2&expires=3"),
        ("https://h/a", "https://h/a"),
        # imgix, Bunny, Alibaba, Tencent, Supabase, Akamai, Cloudflare
        ("https://h/a?w=9&expires=1790000000&s=0123456789abcdef0123456789abcdef", "https://h/a?w=9"),
        ("https://h/a?w=9&s=0123456789abcdef0123456789abcdef", "https://h/a?w=9&s=0123456789abcdef0123456789abcdef"),
        ("https://h/a?s=2&expires=3", "https://h/a?s=2&expires=3"),
        ("https://h/a?token=x-y_z&token_path=%2Fa&expires=1790000000&width=9", "https://h/a?width=9"),
        ("https://h/bcdn_token=x&expires=1790000000&token_path=%2Fb/b/a.jpg", "https://h/b/a.jpg"),
        (
            "https://h/a?x-oss-process=image%2Fresize,w_9&x-oss-date=1&x-oss-expires=9&x-oss-signature-version=OSS4"
            "&x-oss-credential=c&x-oss-signature=s",
            "https://h/a?x-oss-process=image%2Fresize,w_9",
        ),
        ("https://h/a?OSSAccessKeyId=k&Expires=1&Signature=s&security-token=t&v=2", "https://h/a?v=2"),
        ("https://h/a?auth_key=1790000000-0-0-0123456789abcdef0123456789abcdef&v=2", "https://h/a?v=2"),
        (
            "https://h/a?q-sign-algorithm=sha1&q-ak=k&q-sign-time=1;2&q-key-time=1;2&q-signature=s&v=2",
            "https://h/a?v=2",
        ),
        ("https://h/a?sign=q-sign-algorithm%3Dsha1%26q-ak%3Dk%26q-signature%3Dab&v=2", "https://h/a?v=2"),
        ("https://h/a?sign=1790000000-x-0-0123456789abcdef0123456789abcdef&v=2", "https://h/a?v=2"),
        ("https://h/a?sign=0123456789abcdef0123456789abcdef&t=1790000000&v=2", "https://h/a?v=2"),
        ("https://h/a?sign=0123456789abcdef0123456789abcdef", "https://h/a?sign=0123456789abcdef0123456789abcdef"),
        ("https://h/a?sign=stop&t=3", "https://h/a?sign=stop&t=3"),
        ("https://h/a?token=1790000000_0123456789abcdef0123456789abcdef01234567", "https://h/a"),
        ("https://h/a?token=AbC-x&expire=1790000000&v=2", "https://h/a?v=2"),
        ("https://h/a?token=AbC-x&v=2", "https://h/a?token=AbC-x&v=2"),
        ("https://h/a?alt=media&token=2b9b1f3e-9a7c-4f5e", "https://h/a?alt=media&token=2b9b1f3e-9a7c-4f5e"),  # lasts
        ("https://h/a?q=shoes&v=2", "https://h/a?q=shoes&v=2"),
        ("https://h/a?token=eyJhbGciOiJIUzI1NiJ9.eyJ1cmwiOiJhIn0.c2ln&v=2", "https://h/a?v=2"),
        ("https://h/a?token=red&v=2", "https://h/a?token=red&v=2"),
        ("https://h/a?hdnts=st=1~exp=1790000000~acl=/*~hmac=0a1b&v=2", "https://h/a?v=2"),
        ("https://h/a?__cld_token__=exp%3D1790000000~hmac%3D0a1b", "https://h/a"),
        ("https://h/exp=1790000000~acl=*~hmac=0a1b/a.jpg", "https://h/a.jpg"),
        ("https://h/exp=1790000000~acl=/v/*~hmac=0a1b/v/a.jpg", "https://h/v/a.jpg"),
        ("https://h/a?verify=1790000000-aB%2Bc%3D&v=2", "https://h/a?v=2"),
        ("https://h/a?exp=1790000000&sig=0a1b", "https://h/a"),
        # CDN of Alibaba, Tencent and Huawei: types A, B, C and F
        (f"https://h/a?auth_key=1790000000-0-0-{2 * _HASH}", "https://h/a"),
        (f"http://h/202611280800/{_HASH}/4/44/44c0.jpg?v=2", "http://h/4/44/44c0.jpg?v=2"),
        (f"https://h/20261128080059/{2 * _HASH}/a.jpg", "https://h/a.jpg"),
        (f"https://h/{_HASH}/6928F180/a.jpg", "https://h/a.jpg"),
        (f"https://h/a.jpg?KEY1={_HASH}&KEY2=6928F180", "https://h/a.jpg"),
        (f"https://h/a.jpg?auth_key={2 * _HASH}&timestamp=1790000000&v=2", "https://h/a.jpg?v=2"),
        (f"https://h/a.jpg?sign={_HASH}&time=1790000000", "https://h/a.jpg"),
        # What a store keeps its files under
        *((address, address) for address in _KEPT),
    ],
)
def test_the_name_of_an_image_is_its_address_without_signature(address, name):
    assert unsigned_address(address) == name
