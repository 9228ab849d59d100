//! How many nodes a delegate took, counted by a delegate of our own that takes none.
//!
//! It is added last. When TFLite shows it the graph, nodes that an earlier delegate replaced carry that
//! delegate and the list of what they replace. "0 of 31 nodes delegated" is otherwise silent.
#![allow(unsafe_code)]

use std::ffi::c_void;
use std::sync::atomic::{AtomicU32, Ordering};

use edgefirst_tflite_sys::{
    TfLiteContext, TfLiteDelegate, TfLiteDelegateParams, TfLiteIntArray, TfLiteNode,
    TfLiteRegistration, TfLiteStatus, TfLiteStatus_kTfLiteOk,
};

/// `kTfLiteDelegateFlagsAllowDynamicTensors`: without it graphs with dynamic tensors refuse any delegate.
const ALLOW_DYNAMIC_TENSORS: i64 = 1;

/// The delegate and its counters. Must outlive the interpreter it was added to.
pub(super) struct Spy {
    raw: TfLiteDelegate,
    delegated: AtomicU32,
    total: AtomicU32,
}

// SAFETY: after construction only the atomics change.
unsafe impl Send for Spy {}
// SAFETY: as above.
unsafe impl Sync for Spy {}

impl Spy {
    pub(super) fn new() -> Box<Self> {
        let mut spy = Box::new(Self {
            raw: TfLiteDelegate {
                data_: std::ptr::null_mut(),
                Prepare: Some(prepare),
                CopyFromBufferHandle: None,
                CopyToBufferHandle: None,
                FreeBufferHandle: None,
                flags: ALLOW_DYNAMIC_TENSORS,
                opaque_delegate_builder: std::ptr::null_mut(),
            },
            delegated: AtomicU32::new(0),
            total: AtomicU32::new(0),
        });
        let address: *const Self = &raw const *spy;
        spy.raw.data_ = address.cast_mut().cast::<c_void>();
        spy
    }

    pub(super) fn as_delegate(&self) -> *mut TfLiteDelegate {
        std::ptr::from_ref(&self.raw).cast_mut()
    }

    /// Delegated nodes and all nodes, over all subgraphs.
    pub(super) fn counts(&self) -> (u32, u32) {
        (
            self.delegated.load(Ordering::Relaxed),
            self.total.load(Ordering::Relaxed),
        )
    }
}

unsafe extern "C" fn prepare(
    context: *mut TfLiteContext,
    delegate: *mut TfLiteDelegate,
) -> TfLiteStatus {
    // SAFETY: TFLite calls this with the delegate that was added, whose data is a living `Spy`.
    let spy = unsafe { &*(*delegate).data_.cast::<Spy>() };
    // SAFETY: TFLite's context is valid for the length of this call; all pointers it gives are checked.
    unsafe { count(context, spy) };
    // Counting is a comfort: it never makes a model fail.
    TfLiteStatus_kTfLiteOk
}

/// # Safety
/// `context` must be the one TFLite passed to `Prepare`.
unsafe fn count(context: *mut TfLiteContext, spy: &Spy) {
    // SAFETY: see the function's contract; the plan and its nodes belong to TFLite and stay valid meanwhile.
    unsafe {
        let (Some(get_plan), Some(get_node)) = (
            (*context).GetExecutionPlan,
            (*context).GetNodeAndRegistration,
        ) else {
            return;
        };
        let mut plan: *mut TfLiteIntArray = std::ptr::null_mut();
        if get_plan(context, &raw mut plan) != TfLiteStatus_kTfLiteOk || plan.is_null() {
            return;
        }
        let length = usize::try_from((*plan).size).unwrap_or(0);
        // `GetNodeAndRegistration` may reuse the plan's memory: copy the indices first.
        let indices = std::slice::from_raw_parts((*plan).data.as_ptr(), length).to_vec();
        for index in indices {
            let mut node: *mut TfLiteNode = std::ptr::null_mut();
            let mut registration: *mut TfLiteRegistration = std::ptr::null_mut();
            let status = get_node(context, index, &raw mut node, &raw mut registration);
            if status != TfLiteStatus_kTfLiteOk || node.is_null() {
                continue;
            }
            let mut replaced = 1;
            if !(*node).delegate.is_null() {
                let params = (*node).builtin_data.cast::<TfLiteDelegateParams>();
                if !params.is_null() && !(*params).nodes_to_replace.is_null() {
                    replaced = u32::try_from((*(*params).nodes_to_replace).size).unwrap_or(0);
                }
                spy.delegated.fetch_add(replaced, Ordering::Relaxed);
            }
            spy.total.fetch_add(replaced, Ordering::Relaxed);
        }
    }
}
