//! The handshake, fed in two pieces cut anywhere: no panic, no answer that depends on the cut, output bounded by input.

#![no_main]

use libfuzzer_sys::fuzz_target;
use nbd::negotiate::{Directory, Negotiation, Next, Offer, Policy, Refusal, Tls};

struct Shelf;

impl Directory for Shelf {
    type Ticket = ();

    fn list(&self) -> Vec<(String, String)> {
        vec![("disk".to_owned(), String::new())]
    }

    fn look(&self, name: &str) -> Result<Offer, Refusal> {
        if !name.is_empty() && name != "disk" {
            return Err(Refusal::Unknown);
        }
        Ok(Offer {
            name: "disk".to_owned(),
            description: "a disk".to_owned(),
            size: 1 << 30,
            writable: true,
            fast_zero: true,
            block_min: 1,
            block_preferred: 4096,
        })
    }

    fn enter(&self, name: &str) -> Result<((), Offer), Refusal> {
        self.look(name).map(|offer| ((), offer))
    }
}

fn told(pieces: &[&[u8]], tls: Tls) -> (Vec<u8>, String) {
    let mut out = Vec::new();
    let mut negotiation = Negotiation::new(Policy { tls, listing: true }, &mut out);
    let mut held = Vec::new();
    for piece in pieces {
        held.extend_from_slice(piece);
        let (taken, next) = negotiation.step(&held, &mut out, &Shelf);
        held.drain(..taken);
        match next {
            Next::More => assert!(held.len() < Negotiation::INPUT_MAX, "it must get on with that much"),
            Next::StartTls => return (out, "tls".to_owned()),
            Next::Begin((), session) => return (out, format!("{session:?}")),
            Next::Close(_) => return (out, "close".to_owned()),
        }
    }
    (out, "more".to_owned())
}

fuzz_target!(|data: &[u8]| {
    let Some((&first, input)) = data.split_first() else { return };
    let tls = [Tls::Absent, Tls::Required, Tls::Active][usize::from(first % 3)];
    let cut = usize::from(first) * input.len() / 256;
    let whole = told(&[input], tls);
    // Bytes in clear behind STARTTLS count only when they come with it.
    if whole.1 == "close" && tls == Tls::Required {
        return;
    }
    assert_eq!(whole, told(&[&input[..cut], &input[cut..]], tls));
    assert!(whole.0.len() <= 1024 + 64 * input.len());
});
