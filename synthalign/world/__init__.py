"""The offline world: drawn scenes, a language for them, the truth about them, and tiny models of it, all from seeds."""
