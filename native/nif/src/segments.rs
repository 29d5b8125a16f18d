//! `segment_*`, `header_read`, `named_unlink`, `named_served`, `write_begin`, `write_end`.

use crate::accounting::{Account, ChargeResource};
use crate::atoms;
use crate::descriptors::DescriptorResource;
use crate::reply::{self, done, failure, map, reply};
use crate::spec;
use parking_lot::Mutex;
use rustler::schedule::consume_timeslice;
use rustler::sys::enif_alloc_binary;
use rustler::types::atom::Atom;
use rustler::{Binary, Encoder, Env, Error as NifError, NifResult, OwnedBinary, Resource, ResourceArc, Term};
use snakepit_shm_core::backend;
use snakepit_shm_core::error::{Error, Result};
use snakepit_shm_core::header::DATA_OFFSET;
use snakepit_shm_core::headroom;
use snakepit_shm_core::segment::{Info, PhaseName, Plan, Sealed, Segment, View, Wait};
use std::mem::MaybeUninit;

/// A segment, and the one resource that all binaries over its memory share: made by the first view, let go by closing.
pub struct SegmentResource(Segment, Mutex<Option<ResourceArc<ViewResource>>>);

impl SegmentResource {
    fn new(segment: Segment) -> Self {
        SegmentResource(segment, Mutex::new(None))
    }

    /// The view of the whole. Made under the lock, so that `close` finds it or the segment is closed for it.
    fn whole(&self) -> Result<ResourceArc<ViewResource>> {
        let mut cached = self.1.lock();
        if let Some(view) = &*cached {
            return Ok(view.clone());
        }
        let view = ResourceArc::new(ViewResource(self.0.view(0, self.0.size())?));
        *cached = Some(view.clone());
        Ok(view)
    }

    fn close(&self, unlink: bool) {
        self.0.close(unlink);
        let view = self.1.lock().take();
        // Outside the lock: the last of them unmaps, or hands over to the reaper.
        drop(view);
    }
}

#[rustler::resource_impl]
impl Resource for SegmentResource {}

/// Keeps sealed memory mapped while binaries point into it. Apart from the segment, so that closing that lets it go.
pub struct ViewResource(View);

#[rustler::resource_impl]
impl Resource for ViewResource {}

/// Copies this large ask for memory first.
const ASK_FROM: u64 = 64 << 20;

type Handle = ResourceArc<SegmentResource>;

#[rustler::nif]
fn segment_create<'a>(env: Env<'a>, account: Account, specification: Term<'a>) -> NifResult<Term<'a>> {
    create(env, &account, specification)
}

#[rustler::nif(schedule = "DirtyIo")]
fn segment_create_dirty<'a>(env: Env<'a>, account: Account, specification: Term<'a>) -> NifResult<Term<'a>> {
    create(env, &account, specification)
}

fn create<'a>(env: Env<'a>, account: &Account, specification: Term<'a>) -> NifResult<Term<'a>> {
    // A specification that cannot be costs the charge, whoever finds that out.
    let made = spec::plan(specification)?.and_then(|plan| create_segment(account, plan));
    if made.is_err() {
        account.release();
    }
    Ok(reply(env, made))
}

fn create_segment(account: &Account, plan: Plan) -> Result<Handle> {
    let segment = Segment::create(account.pay()?, plan)?;
    Ok(ResourceArc::new(SegmentResource::new(segment)))
}

#[rustler::nif(schedule = "DirtyIo")]
fn segment_open_dirty<'a>(
    env: Env<'a>,
    charge: ResourceArc<ChargeResource>,
    path: Binary<'a>,
    reserve: u64,
) -> NifResult<Term<'a>> {
    let path = reply::path(path)?;
    let opened = charge.take().and_then(|charge| Segment::open(charge, &path, reserve));
    Ok(match opened {
        Ok((segment, live)) => {
            let header = spec::header(env, segment.header(), live);
            (atoms::ok(), ResourceArc::new(SegmentResource::new(segment)), header).encode(env)
        }
        Err(error) => failure(env, &error),
    })
}

#[rustler::nif(schedule = "DirtyIo")]
fn header_read<'a>(env: Env<'a>, path: Binary<'a>) -> NifResult<Term<'a>> {
    let path = reply::path(path)?;
    Ok(match backend::read_header(&path) {
        Ok((header, live, length)) => (atoms::ok(), spec::header(env, &header, live), length).encode(env),
        Err(error) => failure(env, &error),
    })
}

#[rustler::nif(schedule = "DirtyIo")]
fn named_unlink<'a>(env: Env<'a>, path: Binary<'a>, id: &str) -> NifResult<Term<'a>> {
    let path = reply::path(path)?;
    Ok(done(env, backend::unlink_if(&path, id)))
}

#[rustler::nif(schedule = "DirtyIo")]
fn named_served(path: Binary<'_>) -> NifResult<bool> {
    Ok(backend::is_served(&reply::path(path)?))
}

#[rustler::nif]
fn segment_write<'a>(env: Env<'a>, segment: Handle, offset: u64, parts: Term<'a>) -> NifResult<Term<'a>> {
    let parts = reply::list(parts)?;
    let written = write(&segment, offset, &parts, Wait::Spin);
    spend(env, parts.iter().map(|part| part.len() as u64).sum());
    Ok(reply(env, written))
}

#[rustler::nif(schedule = "DirtyCpu")]
fn segment_write_dirty<'a>(env: Env<'a>, segment: Handle, offset: u64, parts: Term<'a>) -> NifResult<Term<'a>> {
    let parts = reply::list(parts)?;
    Ok(reply(env, write(&segment, offset, &parts, Wait::Patient)))
}

fn write(segment: &Handle, offset: u64, parts: &[Binary<'_>], wait: Wait) -> Result<u64> {
    match parts {
        [part] => segment.0.write(offset, &[part.as_slice()], wait),
        parts => {
            let parts: Vec<&[u8]> = parts.iter().map(Binary::as_slice).collect();
            segment.0.write(offset, &parts, wait)
        }
    }
}

#[rustler::nif]
fn segment_read(env: Env<'_>, segment: Handle, offset: u64, length: u64) -> Term<'_> {
    let read = read(env, &segment, offset, length, Wait::Spin);
    spend(env, length);
    reply(env, read)
}

#[rustler::nif(schedule = "DirtyCpu")]
fn segment_read_dirty(env: Env<'_>, segment: Handle, offset: u64, length: u64) -> Term<'_> {
    reply(env, read(env, &segment, offset, length, Wait::Patient))
}

fn read<'a>(env: Env<'a>, segment: &Handle, offset: u64, length: u64, wait: Wait) -> Result<Binary<'a>> {
    segment.0.check_range(offset, length)?;
    let mut binary = allocate(length)?;
    let target = binary.as_mut_slice();
    // SAFETY: `MaybeUninit<u8>` has the layout of `u8`, and `read` only writes there.
    let target =
        unsafe { std::slice::from_raw_parts_mut(target.as_mut_ptr().cast::<MaybeUninit<u8>>(), target.len()) };
    segment.0.read(offset, target, wait)?;
    Ok(binary.release(env))
}

/// A binary that is not zeroed: it is written whole, or never becomes a term.
///
/// Not by `OwnedBinary::new`, which ends the VM when there is no memory; and what is large is asked for first, because
/// the VM over-commits and is killed later.
fn allocate(length: u64) -> Result<OwnedBinary> {
    let _grant = if length >= ASK_FROM {
        Some(headroom::ask(length)?)
    } else {
        None
    };
    let mut binary = MaybeUninit::uninit();
    // SAFETY: the VM fills the binary in when it answers other than 0.
    let allocated = unsafe { enif_alloc_binary(length as usize, binary.as_mut_ptr()) };
    if allocated == 0 {
        let limited_by = "enif_alloc_binary".to_owned();
        return Err(Error::NotEnoughMemory {
            asked: length,
            available: 0,
            limited_by,
        });
    }
    // SAFETY: filled in just now, and ours alone.
    Ok(unsafe { OwnedBinary::from_raw(binary.assume_init()) })
}

#[rustler::nif(schedule = "DirtyIo")]
fn segment_fill_dirty<'a>(
    env: Env<'a>,
    segment: Handle,
    path: Binary<'a>,
    file_offset: u64,
    length: u64,
) -> NifResult<Term<'a>> {
    let path = reply::path(path)?;
    Ok(reply(env, segment.0.fill(&path, file_offset, length)))
}

#[rustler::nif]
fn segment_seal(env: Env<'_>, segment: Handle) -> Term<'_> {
    seal(env, &segment, Wait::Spin)
}

#[rustler::nif(schedule = "DirtyCpu")]
fn segment_seal_dirty(env: Env<'_>, segment: Handle) -> Term<'_> {
    seal(env, &segment, Wait::Patient)
}

fn seal<'a>(env: Env<'a>, segment: &Handle, wait: Wait) -> Term<'a> {
    let sealed = segment.0.seal(wait).map(|Sealed { copied, zero_copy }| {
        map(
            env,
            &[
                (atoms::copied(), copied.encode(env)),
                (atoms::zero_copy(), zero_copy.encode(env)),
            ],
        )
    });
    reply(env, sealed)
}

#[rustler::nif]
fn segment_view(env: Env<'_>, segment: Handle, offset: u64, length: u64) -> Term<'_> {
    let viewed = segment
        .0
        .look(offset, length)
        .and_then(|()| segment.whole())
        .map(|view| {
            // `look` has checked the range against the size, which the view of the whole has.
            view.make_binary(env, |view| &view.0.bytes()[offset as usize..(offset + length) as usize])
        });
    reply(env, viewed)
}

#[rustler::nif]
fn segment_info(env: Env<'_>, segment: Handle) -> Term<'_> {
    use crate::atoms as a;
    let Info {
        phase,
        size,
        length,
        generation,
        writer,
        access_count,
        last_access,
        views,
        named,
        huge_pages,
        peers_write,
        zero_copy,
        mapped,
    } = segment.0.info();
    let state = match phase {
        PhaseName::Allocated => a::allocated(),
        PhaseName::Sealed => a::sealed(),
        PhaseName::Invalid => a::invalid(),
        PhaseName::Closed => a::closed(),
    };
    map(
        env,
        &[
            (a::state(), state.encode(env)),
            (a::size(), size.encode(env)),
            (a::length(), length.encode(env)),
            (a::data_offset(), DATA_OFFSET.encode(env)),
            (a::generation(), generation.encode(env)),
            (a::writer(), writer.encode(env)),
            (a::access_count(), access_count.encode(env)),
            (a::last_access(), last_access.encode(env)),
            (a::viewed(), (views > 0).encode(env)),
            (a::named(), named.encode(env)),
            (a::huge_pages(), huge_pages.encode(env)),
            (a::peers_write(), peers_write.encode(env)),
            (a::zero_copy(), zero_copy.encode(env)),
            (a::mapped(), mapped.encode(env)),
        ],
    )
}

#[rustler::nif]
fn segment_resident(env: Env<'_>, segment: Handle) -> Term<'_> {
    reply(env, segment.0.resident())
}

#[rustler::nif]
fn segment_generation(env: Env<'_>, segment: Handle) -> Term<'_> {
    reply(env, segment.0.generation())
}

#[rustler::nif]
fn segment_idle(segment: Handle) -> u64 {
    segment.0.idle()
}

#[rustler::nif]
fn segment_touch(segment: Handle) -> Atom {
    segment.0.touch();
    atoms::ok()
}

#[rustler::nif]
fn segment_close(segment: Handle, unlink: bool) -> Atom {
    segment.close(unlink);
    atoms::ok()
}

#[rustler::nif(schedule = "DirtyIo")]
fn segment_close_dirty(segment: Handle, unlink: bool) -> Atom {
    segment.close(unlink);
    atoms::ok()
}

#[rustler::nif]
fn segment_invalidate(segment: Handle, reason: Binary<'_>) -> Atom {
    segment.0.invalidate(&String::from_utf8_lossy(reason.as_slice()));
    atoms::ok()
}

#[rustler::nif]
fn write_begin(env: Env<'_>, segment: Handle, writer: u64) -> Term<'_> {
    done(env, segment.0.write_begin(writer))
}

#[rustler::nif]
fn write_end(env: Env<'_>, segment: Handle, writer: u64) -> Term<'_> {
    reply(env, segment.0.write_end(writer))
}

#[rustler::nif]
fn segment_export<'a>(env: Env<'a>, segment: Handle, mode: Atom) -> NifResult<Term<'a>> {
    let writable = match mode {
        mode if mode == atoms::read_only() => false,
        mode if mode == atoms::read_write() => true,
        _ => return Err(NifError::BadArg),
    };
    Ok(match segment.0.export(writable) {
        Ok(descriptor) => {
            let number = descriptor.number();
            (atoms::ok(), DescriptorResource::export(descriptor), number).encode(env)
        }
        Err(error) => failure(env, &error),
    })
}

/// A scheduler's time slice is a millisecond, in which about 6.5 MB are copied: 64 KiB are a hundredth of it.
fn spend(env: Env<'_>, bytes: u64) {
    if bytes >= 32 << 10 {
        consume_timeslice(env, (bytes >> 16).clamp(1, 100) as i32);
    }
}
