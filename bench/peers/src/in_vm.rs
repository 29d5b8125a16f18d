//! The system calls of one region, made on a scheduler of the VM.
//!
//! They take longer there than in a program with nothing else to it: the VM has more threads and mappings, and other
//! processors have to be told when one is gone. What the library adds shows against this.

#[allow(dead_code)]
mod os;
#[allow(dead_code)]
mod segment;

use rustler::{Atom, NifResult};

mod atoms {
    rustler::atoms! { ok }
}

#[rustler::nif]
fn cycle(size: usize) -> NifResult<Atom> {
    run(size)
}

#[rustler::nif(schedule = "DirtyCpu")]
fn cycle_dirty(size: usize) -> NifResult<Atom> {
    run(size)
}

fn run(size: usize) -> NifResult<Atom> {
    match segment::Segment::create(size) {
        Ok(segment) => {
            drop(segment);
            Ok(atoms::ok())
        }
        Err(error) => Err(rustler::Error::Term(Box::new(error.to_string()))),
    }
}

rustler::init!("Elixir.Bench.InVm");
