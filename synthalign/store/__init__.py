"""What a run leaves on disk: landings in shards that are whole or absent, addressed by what they were made from."""

from synthalign.store.landing import Landing, write_atomically
from synthalign.store.ranks import sign_of_life, wait_for
from synthalign.store.recipes import digest, fingerprint, recipe_of, seed_of
from synthalign.store.shards import Shard, shards_by_id, shards_of

__all__ = [
    "Landing",
    "Shard",
    "digest",
    "fingerprint",
    "recipe_of",
    "seed_of",
    "shards_by_id",
    "shards_of",
    "sign_of_life",
    "wait_for",
    "write_atomically",
]
