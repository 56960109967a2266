"""The compiler: op graph, passes and code generation; it knows no GPU and no model file."""
