"""The composition: Prefect flows that run the security layer and the ML layer as one explicit DAG a round.

Read in this order: plan, tables, collect, messages, exchange, model, policy, site, local, report, checkpoint, session,
steps, secure_round, federated_training; then, for sites that run elsewhere, settings, mailbox, participation, remote.
"""
