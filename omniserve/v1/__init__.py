"""Generated gRPC stubs; see proto/ and scripts/generate_stubs.sh."""
