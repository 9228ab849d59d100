//! The messages of TensorFlow Serving, as `agent/protos` defines them. Those that hold tensors are read and written
//! by [`super::tensor`].

use std::collections::BTreeMap;

use edgeward_models::manifest::{Datatype, Signature, TensorSpec};
use prost::Message;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, prost::Enumeration)]
#[repr(i32)]
pub enum DataType {
    DtInvalid = 0,
    DtFloat = 1,
    DtDouble = 2,
    DtInt32 = 3,
    DtUint8 = 4,
    DtInt16 = 5,
    DtInt8 = 6,
    DtString = 7,
    DtInt64 = 9,
    DtBool = 10,
    DtUint16 = 17,
    DtHalf = 19,
    DtUint32 = 22,
    DtUint64 = 23,
}

/// Each datatype, what it is here and how that is called.
const DATATYPES: [(Datatype, DataType, &str); 13] = [
    (Datatype::Fp32, DataType::DtFloat, "DT_FLOAT"),
    (Datatype::Fp64, DataType::DtDouble, "DT_DOUBLE"),
    (Datatype::Int32, DataType::DtInt32, "DT_INT32"),
    (Datatype::Uint8, DataType::DtUint8, "DT_UINT8"),
    (Datatype::Int16, DataType::DtInt16, "DT_INT16"),
    (Datatype::Int8, DataType::DtInt8, "DT_INT8"),
    (Datatype::Bytes, DataType::DtString, "DT_STRING"),
    (Datatype::Int64, DataType::DtInt64, "DT_INT64"),
    (Datatype::Bool, DataType::DtBool, "DT_BOOL"),
    (Datatype::Uint16, DataType::DtUint16, "DT_UINT16"),
    (Datatype::Fp16, DataType::DtHalf, "DT_HALF"),
    (Datatype::Uint32, DataType::DtUint32, "DT_UINT32"),
    (Datatype::Uint64, DataType::DtUint64, "DT_UINT64"),
];

impl DataType {
    pub fn datatype(self) -> Option<Datatype> {
        let mut known = DATATYPES.iter();
        known.find(|known| known.1 == self).map(|known| known.0)
    }

    /// Its name in JSON.
    pub fn name(datatype: Datatype) -> &'static str {
        let mut known = DATATYPES.iter();
        let found = known.find(|known| known.0 == datatype);
        found.map_or("DT_INVALID", |known| known.2)
    }
}

impl From<Datatype> for DataType {
    fn from(datatype: Datatype) -> Self {
        let mut known = DATATYPES.iter();
        let found = known.find(|known| known.0 == datatype);
        found.map_or(Self::DtInvalid, |known| known.1)
    }
}

#[derive(Clone, PartialEq, Message)]
pub struct Dim {
    #[prost(int64, tag = "1")]
    pub size: i64,
}

#[derive(Clone, PartialEq, Message)]
pub struct TensorShapeProto {
    #[prost(message, repeated, tag = "2")]
    pub dim: Vec<Dim>,
    #[prost(bool, tag = "3")]
    pub unknown_rank: bool,
}

impl From<&[i64]> for TensorShapeProto {
    fn from(shape: &[i64]) -> Self {
        Self {
            dim: shape.iter().map(|size| Dim { size: *size }).collect(),
            unknown_rank: false,
        }
    }
}

#[derive(Clone, PartialEq, Message)]
pub struct TensorInfo {
    #[prost(string, tag = "1")]
    pub name: String,
    #[prost(enumeration = "DataType", tag = "2")]
    pub dtype: i32,
    #[prost(message, optional, tag = "3")]
    pub tensor_shape: Option<TensorShapeProto>,
}

#[derive(Clone, PartialEq, Message)]
pub struct SignatureDef {
    #[prost(btree_map = "string, message", tag = "1")]
    pub inputs: BTreeMap<String, TensorInfo>,
    #[prost(btree_map = "string, message", tag = "2")]
    pub outputs: BTreeMap<String, TensorInfo>,
    #[prost(string, tag = "3")]
    pub method_name: String,
}

impl From<&Signature> for SignatureDef {
    fn from(signature: &Signature) -> Self {
        let tensors = |specs: &[TensorSpec]| {
            let info = |spec: &TensorSpec| TensorInfo {
                name: spec.name.clone(),
                dtype: DataType::from(spec.datatype).into(),
                tensor_shape: Some(spec.shape.as_slice().into()),
            };
            let named = specs.iter().map(|spec| (spec.name.clone(), info(spec)));
            named.collect()
        };
        Self {
            inputs: tensors(&signature.inputs),
            outputs: tensors(&signature.outputs),
            method_name: "tensorflow/serving/predict".to_owned(),
        }
    }
}

/// `google.protobuf.Int64Value`.
#[derive(Clone, PartialEq, Message)]
pub struct Int64Value {
    #[prost(int64, tag = "1")]
    pub value: i64,
}

#[derive(Clone, PartialEq, Message)]
pub struct ModelSpec {
    #[prost(string, tag = "1")]
    pub name: String,
    #[prost(message, optional, tag = "2")]
    pub version: Option<Int64Value>,
    #[prost(string, tag = "3")]
    pub signature_name: String,
    #[prost(string, tag = "4")]
    pub version_label: String,
}

#[derive(Clone, PartialEq, Message)]
pub struct SignatureDefMap {
    #[prost(btree_map = "string, message", tag = "1")]
    pub signature_def: BTreeMap<String, SignatureDef>,
}

#[derive(Clone, PartialEq, Message)]
pub struct GetModelMetadataRequest {
    #[prost(message, optional, tag = "1")]
    pub model_spec: Option<ModelSpec>,
    #[prost(string, repeated, tag = "2")]
    pub metadata_field: Vec<String>,
}

/// `google.protobuf.Any`.
#[derive(Clone, PartialEq, Message)]
pub struct Any {
    #[prost(string, tag = "1")]
    pub type_url: String,
    #[prost(bytes = "vec", tag = "2")]
    pub value: Vec<u8>,
}

#[derive(Clone, PartialEq, Message)]
pub struct GetModelMetadataResponse {
    #[prost(message, optional, tag = "1")]
    pub model_spec: Option<ModelSpec>,
    #[prost(btree_map = "string, message", tag = "2")]
    pub metadata: BTreeMap<String, Any>,
}

#[derive(Clone, PartialEq, Message)]
pub struct StatusProto {
    #[prost(int32, tag = "1")]
    pub error_code: i32,
    #[prost(string, tag = "2")]
    pub error_message: String,
}

#[derive(Clone, PartialEq, Message)]
pub struct GetModelStatusRequest {
    #[prost(message, optional, tag = "1")]
    pub model_spec: Option<ModelSpec>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, prost::Enumeration)]
#[repr(i32)]
pub enum State {
    Unknown = 0,
    Loading = 20,
    Available = 30,
}

#[derive(Clone, PartialEq, Message)]
pub struct ModelVersionStatus {
    #[prost(int64, tag = "1")]
    pub version: i64,
    #[prost(enumeration = "State", tag = "2")]
    pub state: i32,
    #[prost(message, optional, tag = "3")]
    pub status: Option<StatusProto>,
}

#[derive(Clone, PartialEq, Message)]
pub struct GetModelStatusResponse {
    #[prost(message, repeated, tag = "1")]
    pub model_version_status: Vec<ModelVersionStatus>,
}
