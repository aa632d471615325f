#!/usr/bin/env bash
# huggingface_hub==2.4.0, Python 3.11, seen 2026-11-28.
#
# A download that is killed begins again from nothing: each run writes to a temporary file of a random name, so the part
# that lies in the cache is never found again, and stays there. Within one run a cut connection is resumed. Weights of
# several gigabytes on a machine that is preempted are therefore fetched from the start each time.
#
# Output seen:
#     first run, killed in mid-file: asked for ['']
#     second run: asked for [''], the file is complete
#     left in the cache: 1 partial file of 300000 bytes or more
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3.11 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check huggingface_hub==2.4.0
cat > "$folder/show.py" <<'PYTHON'
import hashlib, http.server, json, os, pathlib, subprocess, sys, threading

DATA, COMMIT = os.urandom(25_000_000), "5" * 40
HELD, LET_GO, ASKED = threading.Event(), threading.Event(), []


class Hub(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def head(self):
        self.send_response(200)
        self.send_header("X-Repo-Commit", COMMIT)
        self.send_header("ETag", '"' + hashlib.sha256(DATA).hexdigest() + '"')
        self.send_header("Accept-Ranges", "bytes")
        self.send_header("Content-Length", str(len(DATA)))
        self.end_headers()

    do_HEAD = head

    def do_GET(self):
        if not self.path.endswith("weights.bin"):
            body = json.dumps({"id": "o/n", "sha": COMMIT, "siblings": []}).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)
            return
        ASKED.append(self.headers.get("Range", ""))
        self.head()
        if len(ASKED) > 1:
            self.wfile.write(DATA)
            return
        self.wfile.write(DATA[: len(DATA) // 2])
        self.wfile.flush()
        HELD.set()
        LET_GO.wait(60)
        self.close_connection = True


server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub)
server.daemon_threads = True
threading.Thread(target=server.serve_forever, daemon=True).start()
home = pathlib.Path(sys.argv[1])
environment = os.environ | {"HF_ENDPOINT": f"http://127.0.0.1:{server.server_address[1]}", "HF_HOME": str(home), "HF_HUB_DISABLE_XET": "1"}
environment.pop("HF_HUB_OFFLINE", None)
fetch = [sys.executable, "-c", "from huggingface_hub import hf_hub_download as get; print(get('o/n', 'weights.bin'))"]
first = subprocess.Popen(fetch, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
assert HELD.wait(60)
partial = lambda: [file.stat().st_size for file in home.rglob("*.incomplete")]
for _ in range(100):  # until some of it is on the disk
    if any(size >= 300_000 for size in partial()):
        break
    threading.Event().wait(0.1)
first.kill()
first.wait()
LET_GO.set()
print("first run, killed in mid-file: asked for", ASKED)
before = len(ASKED)
done = subprocess.run(fetch, env=environment, check=True, text=True, capture_output=True)
complete = pathlib.Path(done.stdout.split()[-1]).read_bytes() == DATA
print(f"second run: asked for {ASKED[before:]}, the file is {'complete' if complete else 'broken'}")
left = [size for size in partial() if size >= 300_000]
print(f"left in the cache: {len(left)} partial file of 300000 bytes or more")
assert ASKED == ["", ""] and complete and len(left) == 1, "the behaviour has changed"
PYTHON
cd "$folder"
"$folder/venv/bin/python" show.py "$folder/home" 2>"$folder/log" || { cat "$folder/log"; exit 1; }
