"""Events about a run, sent to an address of the user's."""

import re
from dataclasses import dataclass

from refadgen.config.marks import Decides, Place, Section, setting

_RUN = Decides.RUN


@dataclass(frozen=True, kw_only=True)
class WebhookConfig(Section, name="webhook"):
    """Where a run tells that it goes on, is done or has failed; signed as Standard Webhooks say."""

    url: str | None = setting(None, _RUN, pattern=r"https?://\S+", rule="an http(s) address")
    """Receiver of the events; None: none are sent. It stands in run.json: no place for secrets."""
    secret_file: str | None = setting(None, _RUN, place=Place.PATH)
    """File with the secret that signs the events, `whsec_` and base64, or any text of 16 characters and more."""
    secret_variable: str = setting("REFADGEN_WEBHOOK_SECRET", _RUN, pattern=r"[A-Za-z_]\w*", rule="a variable's name")
    """Environment variable of the driver that holds the secret, where there is no `secret_file`."""
    every_s: float = setting(60.0, _RUN, least=0, most=86_400)
    """Seconds between two events of progress; 0: none are sent."""
    timeout_s: float = setting(10.0, _RUN, above=0, most=60)
    """For one delivery."""
    num_retries: int = setting(5, _RUN, least=0, most=20)
    """Further deliveries of an event that the receiver has not answered with a status of 200 to 299."""
    backoff_s: float = setting(1.0, _RUN, least=0, most=60)
    """Wait before the first of them; doubles each time, up to a minute."""
    wait_s: float = setting(60.0, _RUN, least=0, most=600)
    """The longest that a finished run waits for its last events to be delivered."""
    allow_private_addresses: bool = setting(False, _RUN)
    """Whether the receiver may have a private, loopback or link-local address."""

    def check(self) -> None:
        if self.url is not None and re.search(r"//[^/]*@", self.url):
            raise ValueError("webhook.url: must hold no user and password: it stands in run.json")
