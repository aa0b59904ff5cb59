"""Programs of math instructions: types, the instruction table, the program itself (numpy only)."""
