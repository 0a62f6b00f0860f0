"""What a person types and sees: rules for values, messages, console output, signals. Imports no other room."""
