//! The command line.

/// Counts the memory of tensors for `memory/peak_bytes` of a step.
#[global_allocator]
static ALLOCATOR: efference_ops::memory::CountingAllocator = efference_ops::memory::CountingAllocator;

fn main() -> std::process::ExitCode {
    efference::cli::main()
}
