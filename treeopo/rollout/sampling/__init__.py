"""Where groups start: samplers of start states by name, one small file each.

names.py       the registry
base.py        GroupSampler, and the protocol of a sampler
prefixes.py    uniform over the prefixes of one problem (Tree-OPO)
traces.py      prefixes of one teacher trace (the ablation of Tree-OPO's Table 1)
roots.py       the root alone (GRPO)
"""
