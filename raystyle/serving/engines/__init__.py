"""Engines: what turns rows of token ids into more of them. One contract (`serving.contract.Engine`), one suite of tests."""
