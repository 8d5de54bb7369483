"""Differential privacy's arithmetic (SPEC 12): pure functions for whoever plans, noises or audits a sum.

Read in this order: clipping, noise, accounting, budget; beside them protocols.gaussian and protocols.rotation.
"""
