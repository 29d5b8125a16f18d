//! The functions that libraries call, by subject. Semantics: OTP's erl_nif.xml, and erl_nif.c where that is silent.
//!
//! Each module is one `api!`, which makes the exported functions and the module's part of the table of symbols.

// What a caller has to keep is erl_nif.xml, for each of them.
#![allow(clippy::missing_safety_doc)]

/// Exported functions. The bodies may do what the contract of erl_nif.xml allows: env and out-parameters are valid
/// pointers, terms belong to live envs, and nobody else uses the env now.
macro_rules! api {
    ($(fn $name:ident($($argument:ident: $type:ty),* $(,)?) $(-> $answer:ty)? $body:block)*) => {
        $(
            #[unsafe(no_mangle)]
            pub unsafe extern "C" fn $name($($argument: $type),*) $(-> $answer)? {
                // SAFETY: the library keeps the contract of erl_nif.xml, as it must in the VM; if not, it hurts its own
                // process.
                #[allow(unused_unsafe)]
                unsafe { $body }
            }
        )*

        pub const SYMBOLS: &[$crate::host::symbols::Symbol] = &[
            $($crate::host::symbols::Symbol::present(stringify!($name), $name as *const ())),*
        ];
    };
}

pub mod atoms;
pub mod binaries;
pub mod environment;
pub mod exceptions;
pub mod externals;
pub mod lists;
pub mod locks;
pub mod maps;
pub mod memory;
pub mod messages;
pub mod monitors;
pub mod numbers;
pub mod processes;
pub mod queues;
pub mod resources;
pub mod select;
pub mod system;
pub mod terms;
pub mod threads;
pub mod time;
pub mod tuples;
