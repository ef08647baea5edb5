"""Where groups start: samplers of start states by name, one small file each (docs/curriculum.md).

names.py       the registry
groups.py      GroupSampler: a group by its number
base.py        the protocol of a sampler, and the prefixes that it chooses from
known.py       what a sampler may know of the run so far
prefixes.py    uniform over the prefixes of one problem (Tree-OPO)
traces.py      prefixes of one teacher trace (the ablation of Tree-OPO's Table 1)
roots.py       the root alone (GRPO)
depths.py      uniform over the depths of one problem (R3)
mixture.py     a share of the groups at the root, the others by another sampler
anneal.py      from deep prefixes to the root (UFT)
success.py     prefixes that the student solves about half of the time (SEELE, AdaPrefix)
frontier.py    the shallowest such prefixes of each problem (AdaBack), wrong turns of a solved one (Failure-prefix)
"""
