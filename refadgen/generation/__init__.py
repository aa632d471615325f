"""The batch job: a catalogue becomes ad images and a ledger of every one of them."""
