"""The security layer: secure aggregation that survives retries, crashes and a hostile coordinator (SPEC.md).

Nothing here imports prefect, torch or the ML layer: the whole of what protects a site's data can be read, audited and
extended in this folder. Read in this order: errors, keys, contexts, messages, shamir, encoding, masks, secagg_site,
secagg_coordinator, vault, site, consortium, receipt, audit; then ledger, gaussian, and the folder privacy.
"""
