"""Who asks. In the order of the checks:

bearer_token         one header, one well-formed token
jwks                 the issuer's keys
claims               times, audience, kind, types
verifier             all of it; a tenant or a refusal
token_policy         whose tokens are accepted
"""
