"""Whether what lies in infra/ would be accepted where it is to run, as far as that can be told without a cluster."""
