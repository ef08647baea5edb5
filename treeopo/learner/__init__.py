"""The learner: a LoRA policy in torch and peft, its objective, its optimiser step and its checkpoints."""
