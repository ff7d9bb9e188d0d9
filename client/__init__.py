"""What runs inside one hospital."""
