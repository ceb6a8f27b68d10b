"""Checks of the files in infra/ against their tools' schemas, without a cluster or cloud account."""
