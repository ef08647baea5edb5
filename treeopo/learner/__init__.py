"""The learner: a LoRA policy in torch and peft, its losses, its optimiser step and its checkpoints."""
