//! What is written is read again, and anything else is refused.

use super::*;
use proptest::prelude::*;

fn tensors() -> impl Strategy<Value = Vec<TensorRef>> {
    let tensor = (
        any::<u64>(),
        any::<u64>(),
        prop::collection::vec(0..=i64::from(i32::MAX), 0..=MAX_DIMENSIONS),
    );
    let tensor = tensor.prop_map(|(offset, length, shape)| TensorRef {
        offset,
        length,
        shape: Shape::new(shape).expect("in range"),
    });
    prop::collection::vec(tensor, 0..=MAX_TENSORS)
}

proptest! {
    #[test]
    fn jobs_and_replies_survive_the_journey(inputs in tensors(), id: u64, slot: u32, own_memory: u64) {
        let stream = Stream { number: slot, begin: id % 2 == 0, end: id % 3 == 0 };
        let job = Job { id, slot, signature: 3, stream, sent_at: 9, core: 1, company: 2, own_memory, inputs: inputs.clone() };
        let mut bytes = Vec::new();
        job.encode(&mut bytes);
        prop_assert!(bytes.len() <= MAX_MESSAGE_BYTES);
        prop_assert_eq!(Job::decode(&bytes), Ok(job));
        let done = Done { queue_nanoseconds: 1, invoke_nanoseconds: 2, batch: Batch { size: 3, first: true }, own_memory, outputs: inputs };
        for outcome in [Outcome::Done(done), Outcome::Failed("no".to_owned()), Outcome::Cancelled] {
            let reply = Reply { id, slot, outcome };
            bytes.clear();
            reply.encode(&mut bytes);
            prop_assert!(bytes.len() <= MAX_MESSAGE_BYTES);
            prop_assert_eq!(Reply::decode(&bytes), Ok(reply));
        }
    }

    #[test]
    fn any_bytes_parse_or_are_refused_without_a_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        if let Ok(job) = Job::decode(&bytes) {
            let mut again = Vec::new();
            job.encode(&mut again);
            prop_assert_eq!(again, bytes.clone());
        }
        let _ = Reply::decode(&bytes);
    }
}

#[test]
fn long_texts_are_cut_at_a_character() {
    let text = "é".repeat(MAX_TEXT_BYTES);
    assert!(cut(&text).len() <= MAX_TEXT_BYTES && cut(&text).ends_with('é'));
    assert_eq!(cut("short"), "short");
}

#[test]
fn shapes_count_their_elements_and_refuse_what_tflite_cannot_hold() {
    assert_eq!(Shape::new([2, 3]).and_then(|s| s.elements()), Some(6));
    assert_eq!(Shape::new([]).and_then(|s| s.elements()), Some(1));
    assert_eq!(Shape::new([-1]), None);
    assert_eq!(Shape::new([1 << 31]), None);
    assert_eq!(Shape::new([1; 9]), None);
    let huge = Shape::new([i64::from(i32::MAX); 8]).expect("shape");
    assert_eq!(huge.elements(), None);
}
