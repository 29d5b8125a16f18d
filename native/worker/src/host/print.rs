//! Terms as text, for `%T`: as the VM prints them, apart from names without a known key.

use super::atom;
use super::map;
use super::name::{self, Identity, identity};
use super::resource::Object;
use super::term::{Big, Bits, Shape, Term};
use snakepit_wire::{Name, NameKind};
use std::ffi::c_char;
use std::fmt::Write;

/// What is still to be written.
enum Step {
    Text(&'static str),
    Term(Term),
    Tail(Term),
}

/// The text of a term. Iterative: terms may be deep.
pub fn text(term: Term) -> String {
    let mut out = String::new();
    let mut steps = vec![Step::Term(term)];
    while let Some(step) = steps.pop() {
        match step {
            Step::Text(text) => out.push_str(text),
            Step::Term(term) => print(term, &mut out, &mut steps),
            Step::Tail(Term::NIL) => out.push(']'),
            Step::Tail(tail) => match tail.as_cons() {
                Some(cell) => {
                    out.push(',');
                    steps.push(Step::Tail(cell.tail));
                    steps.push(Step::Term(cell.head));
                }
                None => {
                    out.push('|');
                    steps.push(Step::Text("]"));
                    steps.push(Step::Term(tail));
                }
            },
        }
    }
    out
}

fn print(term: Term, out: &mut String, steps: &mut Vec<Step>) {
    match term.shape() {
        Shape::Invalid => out.push_str("<the non-value>"),
        Shape::Small(value) => push(out, format_args!("{value}")),
        Shape::Atom(number) => print_atom(atom::text(number), out),
        Shape::Nil => out.push_str("[]"),
        Shape::Cons(head, tail) => match string(term) {
            Some(text) => push(out, format_args!("\"{text}\"")),
            None => {
                out.push('[');
                steps.push(Step::Tail(tail));
                steps.push(Step::Term(head));
            }
        },
        Shape::Tuple(elements) => {
            out.push('{');
            steps.push(Step::Text("}"));
            for (position, element) in elements.iter().enumerate().rev() {
                steps.push(Step::Term(*element));
                if position > 0 {
                    steps.push(Step::Text(","));
                }
            }
        }
        Shape::Map => {
            out.push_str("#{");
            steps.push(Step::Text("}"));
            let pairs: Vec<_> = map::pairs(term).collect();
            for (position, (key, value)) in pairs.iter().enumerate().rev() {
                steps.extend([Step::Term(*value), Step::Text("=>"), Step::Term(*key)]);
                if position > 0 {
                    steps.push(Step::Text(","));
                }
            }
        }
        Shape::Big(big) => print_big(&big, out),
        Shape::Float(value) => push(out, format_args!("{}", Float(value))),
        Shape::Bits(bits) => print_bits(bits, out),
        Shape::Name(name) => match term.as_handle() {
            Some(handle) => print_name(name, Some(handle.key()), out),
            None => print_name(name, name::key(name).as_deref(), out),
        },
        Shape::Resource(object) => print_resource(object, out),
    }
}

fn push(out: &mut String, arguments: std::fmt::Arguments<'_>) {
    // A string takes everything.
    let _ = out.write_fmt(arguments);
}

/// A float as the VM prints it: `1.500000e+00`.
struct Float(f64);

impl std::fmt::Display for Float {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let text = format!("{:.6e}", self.0);
        let (mantissa, exponent) = text.split_once('e').unwrap_or((&text, "0"));
        let exponent: i32 = exponent.parse().unwrap_or(0);
        let sign = if exponent < 0 { '-' } else { '+' };
        write!(f, "{mantissa}e{sign}{:02}", exponent.abs())
    }
}

/// The characters of a printable list, which is written as a string.
fn string(list: Term) -> Option<String> {
    let mut text = String::new();
    let mut rest = list;
    while let Some(cell) = rest.as_cons() {
        match u8::try_from(cell.head.as_small()?).ok()? {
            b'\n' => text.push_str("\\n"),
            b'"' => text.push_str("\\\""),
            byte @ (b' '..=b'~' | 0xA0..) => text.push(char::from(byte)),
            _ => return None,
        }
        rest = cell.tail;
    }
    (rest == Term::NIL).then_some(text)
}

fn print_atom(text: &str, out: &mut String) {
    let plain = text.starts_with(|first: char| first.is_lowercase())
        && text
            .chars()
            .all(|character| character.is_alphanumeric() || matches!(character, '_' | '@'));
    if plain {
        out.push_str(text);
        return;
    }
    out.push('\'');
    for character in text.chars() {
        match character {
            '\'' => out.push_str("\\'"),
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            character => out.push(character),
        }
    }
    out.push('\'');
}

fn print_big(big: &Big<'_>, out: &mut String) {
    if big.negative {
        out.push('-');
    }
    // Groups of 18 digits, the least significant first.
    const GROUP: u128 = 1_000_000_000_000_000_000;
    let mut limbs = big.limbs.to_vec();
    let mut groups = Vec::new();
    while !limbs.is_empty() {
        let mut rest = 0;
        for limb in limbs.iter_mut().rev() {
            let value = rest << 64 | u128::from(*limb);
            *limb = (value / GROUP) as u64;
            rest = value % GROUP;
        }
        groups.push(rest);
        while limbs.last() == Some(&0) {
            limbs.pop();
        }
    }
    for (position, group) in groups.iter().rev().enumerate() {
        if position == 0 {
            push(out, format_args!("{group}"));
        } else {
            push(out, format_args!("{group:018}"));
        }
    }
}

fn print_bits(bits: &Bits, out: &mut String) {
    let bytes = bits.bytes();
    if bits.last == 0 && !bytes.is_empty() && bytes.iter().all(|byte| matches!(byte, b' '..=b'~') && *byte != b'"') {
        push(out, format_args!("<<\"{}\">>", String::from_utf8_lossy(bytes)));
        return;
    }
    out.push_str("<<");
    for (position, byte) in bytes.iter().enumerate() {
        let comma = if position > 0 { "," } else { "" };
        if bits.last > 0 && position + 1 == bytes.len() {
            push(out, format_args!("{comma}{}:{}", byte >> (8 - bits.last), bits.last));
        } else {
            push(out, format_args!("{comma}{byte}"));
        }
    }
    out.push_str(">>");
}

fn print_name(name: Name, key: Option<&[u8]>, out: &mut String) {
    let known = key.and_then(|key| identity(name.kind, key));
    match (name.kind, known) {
        (NameKind::Pid, Some(Identity { numbers, .. })) => {
            push(out, format_args!("<0.{}.{}>", numbers[1], numbers[0]));
        }
        (NameKind::Port, Some(Identity { numbers, .. })) => push(out, format_args!("#Port<0.{}>", numbers[0])),
        (NameKind::Reference, Some(Identity { numbers, .. })) => {
            out.push_str("#Ref<0");
            let first = numbers
                .iter()
                .position(|number| *number != 0)
                .unwrap_or(numbers.len() - 1);
            numbers[first..]
                .iter()
                .for_each(|number| push(out, format_args!(".{number}")));
            out.push('>');
        }
        (kind, _) => push(out, format_args!("#{kind:?}<{}.{}>", name.index, name.generation)),
    }
}

fn print_resource(object: *mut Object, out: &mut String) {
    push(out, format_args!("#Ref<0.0.0.{}>", object as usize));
}

/// For c/variadic.c: the text of a term, terminated, to be freed with `free`; null if there is no memory.
#[unsafe(no_mangle)]
extern "C" fn snakepit_term_text(term: Term) -> *mut c_char {
    let text = text(term);
    // SAFETY: room for the text and its end.
    unsafe {
        let copy = libc::malloc(text.len() + 1).cast::<u8>();
        if !copy.is_null() {
            std::ptr::copy_nonoverlapping(text.as_ptr(), copy, text.len());
            copy.add(text.len()).write(0);
        }
        copy.cast()
    }
}
