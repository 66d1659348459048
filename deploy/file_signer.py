"""A signer command for content credentials: signs standard input with a P-256 key in a PEM file.

    LIPSYNC_SIGNING_COMMAND="python deploy/file_signer.py key.pem"

A command for a vault or an HSM does the same with a key that never leaves it.
"""

import sys
from pathlib import Path

from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, utils

key = serialization.load_pem_private_key(Path(sys.argv[1]).read_bytes(), None)
if not isinstance(key, ec.EllipticCurvePrivateKey):
    sys.exit("the key is not a P-256 key")
r, s = utils.decode_dss_signature(key.sign(sys.stdin.buffer.read(), ec.ECDSA(hashes.SHA256())))
sys.stdout.buffer.write(r.to_bytes(32, "big") + s.to_bytes(32, "big"))
