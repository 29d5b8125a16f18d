//! What `worker_new` is given.

use super::atom_quota::AtomsAccount;
use super::failure::Result;
use super::handle::{Handle, Ref};
use super::services::{Grants, Whereis};
use crate::atoms;
use rustler::types::atom::Atom;
use rustler::{Decoder, Error as NifError, NifResult, Term};
use snakepit_shm_core::error::Error;
use snakepit_shm_core::ring::Plan;

#[derive(Debug)]
pub struct Spec {
    pub slots: u32,
    pub slot_bytes: u32,
    pub spill_bytes: u32,
    pub executors: u16,
    pub spin_us: u32,
    pub atoms: Handle<AtomsAccount>,
    pub names: usize,
    pub max_words: u64,
    pub max_depth: u32,
    /// Bytes; 0: no bound.
    pub memory: u64,
}

impl Spec {
    pub fn read(spec: Term<'_>) -> NifResult<Self> {
        use crate::atoms as a;
        let env = spec.get_env();
        let get = |key: Atom| spec.map_get(key.to_term(env));
        fn number<'a, T: Decoder<'a>>(term: NifResult<Term<'a>>) -> NifResult<T> {
            term?.decode().map_err(|_| NifError::BadArg)
        }
        Ok(Spec {
            slots: number(get(a::slots()))?,
            slot_bytes: number(get(a::slot_bytes()))?,
            spill_bytes: number(get(a::spill_bytes()))?,
            executors: number(get(a::executors()))?,
            spin_us: number(get(a::spin_us()))?,
            atoms: Ref::<AtomsAccount>::of(get(a::quota_atoms())?)?.keep(),
            names: number::<u32>(get(a::names()))? as usize,
            max_words: number(get(a::max_words()))?,
            max_depth: number(get(a::max_depth()))?,
            memory: number(get(a::memory()))?,
        })
    }

    pub fn grants(spec: Term<'_>) -> NifResult<Grants> {
        let env = spec.get_env();
        let whereis = spec.map_get(atoms::whereis().to_term(env))?;
        let port_command = spec.map_get(atoms::port_command().to_term(env))?;
        Ok(Grants {
            whereis: if atoms::all() == whereis {
                Whereis::All
            } else {
                Whereis::These(whereis.decode()?)
            },
            port_command: port_command.decode()?,
        })
    }

    pub fn plan(&self) -> Result<Plan> {
        if !(1..=1 << 20).contains(&self.names) {
            return Err(Error::invalid_spec("names", "must be from 1 to 1048576").into());
        }
        Ok(Plan {
            slots: self.slots,
            slot_bytes: self.slot_bytes,
            spill_bytes: self.spill_bytes,
            executors: u32::from(self.executors),
            ..Plan::default()
        })
    }
}
