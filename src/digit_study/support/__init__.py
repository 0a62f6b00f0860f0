"""What every package needs: errors, console, signals, workspace. Imports no other package."""
