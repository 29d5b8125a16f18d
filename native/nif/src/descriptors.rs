//! `descriptor_close`, `lock_file`, `lock_write`.

use crate::atoms;
use crate::reply::{self, done, failure};
use parking_lot::Mutex;
use rustler::types::atom::Atom;
use rustler::{Binary, Encoder, Env, Error as NifError, NifResult, Resource, ResourceArc, Term};
use snakepit_shm_core::descriptor::Descriptor;
use snakepit_shm_core::error::Error;
use snakepit_shm_core::lock_file::LockFile;

enum Held {
    Export(Descriptor),
    Lock(LockFile),
}

/// A descriptor that Elixir owns, until it is closed or collected.
pub struct DescriptorResource(Mutex<Option<Held>>);

#[rustler::resource_impl]
impl Resource for DescriptorResource {}

impl DescriptorResource {
    pub fn export(descriptor: Descriptor) -> ResourceArc<Self> {
        ResourceArc::new(DescriptorResource(Mutex::new(Some(Held::Export(descriptor)))))
    }
}

#[rustler::nif]
fn descriptor_close(descriptor: ResourceArc<DescriptorResource>) -> Atom {
    let held = descriptor.0.lock().take();
    match held {
        Some(Held::Export(descriptor)) => drop(descriptor),
        Some(Held::Lock(lock)) => drop(lock),
        None => {}
    }
    atoms::ok()
}

#[rustler::nif(schedule = "DirtyIo")]
fn lock_file<'a>(env: Env<'a>, path: Binary<'a>) -> NifResult<Term<'a>> {
    let path = reply::path(path)?;
    Ok(match LockFile::acquire(&path) {
        Ok((lock, contents)) => {
            let resource = ResourceArc::new(DescriptorResource(Mutex::new(Some(Held::Lock(lock)))));
            (atoms::ok(), resource, reply::bytes(env, &contents)).encode(env)
        }
        Err(error) => failure(env, &error),
    })
}

#[rustler::nif(schedule = "DirtyIo")]
fn lock_write<'a>(
    env: Env<'a>,
    descriptor: ResourceArc<DescriptorResource>,
    contents: Binary<'a>,
) -> NifResult<Term<'a>> {
    let held = descriptor.0.lock();
    match &*held {
        Some(Held::Lock(lock)) => Ok(done(env, lock.replace(contents.as_slice()))),
        Some(Held::Export(_)) => Err(NifError::BadArg),
        None => Ok(failure(env, &Error::Closed)),
    }
}
