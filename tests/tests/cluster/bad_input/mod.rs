//! Whatever a client, a file or an operator gets wrong: a clear error with the right code, and life goes on.

mod command_line;
mod grpc;
mod http;
mod peers;
