"""The two wire formats, gRPC `omniserve.v1` and OpenAI over HTTP. They only translate."""
