//! The VM's side: `Snakepit.Native`. One file per group of functions; what they do is in `snakepit_shm_core`.
//!
//! A function here decodes its arguments (anything of the wrong type is `badarg`), calls the core, and encodes what
//! comes back. Panics end in rustler's `catch_unwind`. The functions without `_dirty` run on a scheduler: they only
//! spin on locks, copy what is small, and leave large memory to the reaper.

mod accounting;
mod atoms;
mod descriptors;
mod isolation;
mod json;
mod machine;
mod peers;
mod reply;
mod segments;
mod spec;
mod watcher;

rustler::init!("Elixir.Snakepit.Native", load = load);

fn load(env: rustler::Env<'_>, _load_info: rustler::Term<'_>) -> bool {
    isolation::load(env)
}
