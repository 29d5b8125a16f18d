//! OTP's asn1rt_nif, unmodified, in the host.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    reason = "a test has one reason to fail, and the line says which"
)]

mod hosted;

use hosted::{atom, binary};
use snakepit_wire::reference::Value;

#[test]
fn ber_and_per_are_coded() {
    let Some(path) = hosted::debian("asn1-", "priv/lib/asn1rt_nif") else {
        return;
    };
    let mut asn1 = hosted::load(&path, &Value::Integer(1)).unwrap();
    assert_eq!(asn1.loaded().module, "asn1rt_nif");
    assert_eq!(asn1.loaded().missing, Vec::<String>::new());
    // SEQUENCE { INTEGER 5, UTF8String "hi" }
    let ber = [0x30, 0x07, 0x02, 0x01, 0x05, 0x0C, 0x02, b'h', b'i'];
    let parts = Value::list([
        Value::tuple([Value::Integer(2), binary([5])]),
        Value::tuple([Value::Integer(12), binary("hi")]),
    ]);
    let tree = Value::tuple([Value::Integer(16), parts]);
    let decoded = asn1.value("decode_ber_tlv_raw", &[binary(ber)]);
    assert_eq!(decoded, Value::tuple([tree.clone(), binary("")]));
    assert_eq!(asn1.value("encode_ber_tlv", &[tree]), binary(ber));
    let cut = asn1.value("decode_ber_tlv_raw", &[binary(&ber[..5])]);
    let Value::Tuple(error) = cut else { panic!("{cut:?}") };
    assert_eq!(error[0], atom("error"));
}
