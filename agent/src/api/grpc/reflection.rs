//! `grpc.reflection`: which services there are and what their messages look like, for tools such as grpcurl.
//!
//! Answers come out of one file of descriptors, made of the definitions in `agent/protos`. The versions `v1` and
//! `v1alpha` of the protocol differ in their name only.

use std::collections::HashMap;
use std::sync::OnceLock;

use bytes::Bytes;
use prost::Message;

use super::rpc::SERVICES;

/// All files, one after the other (`google.protobuf.FileDescriptorSet`).
static DESCRIPTORS: &[u8] = include_bytes!("../../../protos/descriptors.binpb");

/// gRPC's code of what is not there.
const NOT_FOUND: i32 = 5;
const UNIMPLEMENTED: i32 = 12;

#[derive(Clone, PartialEq, Message)]
pub struct ServerReflectionRequest {
    #[prost(string, tag = "1")]
    pub host: String,
    #[prost(oneof = "Question", tags = "3, 4, 5, 6, 7")]
    pub message_request: Option<Question>,
}

#[derive(Clone, PartialEq, prost::Oneof)]
pub enum Question {
    #[prost(string, tag = "3")]
    FileByFilename(String),
    #[prost(string, tag = "4")]
    FileContainingSymbol(String),
    #[prost(message, tag = "5")]
    FileContainingExtension(ExtensionRequest),
    #[prost(string, tag = "6")]
    AllExtensionNumbersOfType(String),
    #[prost(string, tag = "7")]
    ListServices(String),
}

#[derive(Clone, PartialEq, Message)]
pub struct ExtensionRequest {
    #[prost(string, tag = "1")]
    pub containing_type: String,
    #[prost(int32, tag = "2")]
    pub extension_number: i32,
}

#[derive(Clone, PartialEq, Message)]
pub struct ServerReflectionResponse {
    #[prost(string, tag = "1")]
    pub valid_host: String,
    #[prost(message, optional, tag = "2")]
    pub original_request: Option<ServerReflectionRequest>,
    #[prost(oneof = "Reply", tags = "4, 6, 7")]
    pub message_response: Option<Reply>,
}

#[derive(Clone, PartialEq, prost::Oneof)]
pub enum Reply {
    #[prost(message, tag = "4")]
    Files(FileDescriptorResponse),
    #[prost(message, tag = "6")]
    Services(ListServiceResponse),
    #[prost(message, tag = "7")]
    Error(ErrorResponse),
}

#[derive(Clone, PartialEq, Message)]
pub struct FileDescriptorResponse {
    #[prost(bytes = "bytes", repeated, tag = "1")]
    pub file_descriptor_proto: Vec<Bytes>,
}

#[derive(Clone, PartialEq, Message)]
pub struct ListServiceResponse {
    #[prost(message, repeated, tag = "1")]
    pub service: Vec<ServiceResponse>,
}

#[derive(Clone, PartialEq, Message)]
pub struct ServiceResponse {
    #[prost(string, tag = "1")]
    pub name: String,
}

#[derive(Clone, PartialEq, Message)]
pub struct ErrorResponse {
    #[prost(int32, tag = "1")]
    pub error_code: i32,
    #[prost(string, tag = "2")]
    pub error_message: String,
}

/// What is needed of `google.protobuf`'s descriptors: names, and which file stands on which.
mod descriptor {
    use bytes::Bytes;

    #[derive(Clone, PartialEq, prost::Message)]
    pub struct FileSet {
        #[prost(bytes = "bytes", repeated, tag = "1")]
        pub file: Vec<Bytes>,
    }

    #[derive(Clone, PartialEq, prost::Message)]
    pub struct File {
        #[prost(string, tag = "1")]
        pub name: String,
        #[prost(string, tag = "2")]
        pub package: String,
        #[prost(string, repeated, tag = "3")]
        pub dependency: Vec<String>,
        #[prost(message, repeated, tag = "4")]
        pub message_type: Vec<Type>,
        #[prost(message, repeated, tag = "5")]
        pub enum_type: Vec<Name>,
        #[prost(message, repeated, tag = "6")]
        pub service: Vec<Service>,
    }

    #[derive(Clone, PartialEq, prost::Message)]
    pub struct Type {
        #[prost(string, tag = "1")]
        pub name: String,
        #[prost(message, repeated, tag = "3")]
        pub nested_type: Vec<Type>,
        #[prost(message, repeated, tag = "4")]
        pub enum_type: Vec<Name>,
    }

    #[derive(Clone, PartialEq, prost::Message)]
    pub struct Service {
        #[prost(string, tag = "1")]
        pub name: String,
        #[prost(message, repeated, tag = "2")]
        pub method: Vec<Name>,
    }

    #[derive(Clone, PartialEq, prost::Message)]
    pub struct Name {
        #[prost(string, tag = "1")]
        pub name: String,
    }
}

/// Where everything is.
#[derive(Default)]
struct Index {
    /// By name, with the names of those that it stands on.
    files: HashMap<String, (Bytes, Vec<String>)>,
    /// Services, methods, messages and enumerations: in which file.
    symbols: HashMap<String, String>,
}

impl Index {
    fn get() -> &'static Self {
        static INDEX: OnceLock<Index> = OnceLock::new();
        INDEX.get_or_init(|| Self::of(DESCRIPTORS))
    }

    fn of(descriptors: &'static [u8]) -> Self {
        let mut index = Self::default();
        let set = descriptor::FileSet::decode(Bytes::from_static(descriptors)).unwrap_or_default();
        for bytes in set.file {
            let file = descriptor::File::decode(bytes.clone()).unwrap_or_default();
            let mut symbols = Vec::new();
            for service in &file.service {
                let name = format!("{}.{}", file.package, service.name);
                let methods = service.method.iter();
                symbols.extend(methods.map(|method| format!("{name}.{}", method.name)));
                symbols.push(name);
            }
            note_types(
                &file.package,
                &file.message_type,
                &file.enum_type,
                &mut symbols,
            );
            for symbol in symbols {
                index.symbols.insert(symbol, file.name.clone());
            }
            index.files.insert(file.name, (bytes, file.dependency));
        }
        index
    }

    /// A file and all that it stands on.
    fn with_dependencies(&self, name: &str) -> Option<Vec<Bytes>> {
        let mut names = vec![name];
        let mut found = Vec::new();
        let mut position = 0;
        while let Some(name) = names.get(position) {
            let (bytes, dependencies) = self.files.get(*name)?;
            found.push(bytes.clone());
            for dependency in dependencies {
                if !names.contains(&dependency.as_str()) {
                    names.push(dependency);
                }
            }
            position += 1;
        }
        Some(found)
    }
}

fn note_types(
    scope: &str,
    messages: &[descriptor::Type],
    enumerations: &[descriptor::Name],
    symbols: &mut Vec<String>,
) {
    symbols.extend(enumerations.iter().map(|e| format!("{scope}.{}", e.name)));
    for message in messages {
        let name = format!("{scope}.{}", message.name);
        note_types(&name, &message.nested_type, &message.enum_type, symbols);
        symbols.push(name);
    }
}

/// Answers one question of a stream.
pub fn answer(request: ServerReflectionRequest) -> ServerReflectionResponse {
    let index = Index::get();
    let files = |name: &str| {
        let file_descriptor_proto = index.with_dependencies(name)?;
        Some(Reply::Files(FileDescriptorResponse {
            file_descriptor_proto,
        }))
    };
    let missing = |what: &str| {
        Reply::Error(ErrorResponse {
            error_code: NOT_FOUND,
            error_message: format!("there is no {what:?} here"),
        })
    };
    let reply = match &request.message_request {
        Some(Question::FileByFilename(name)) => files(name).unwrap_or_else(|| missing(name)),
        Some(Question::FileContainingSymbol(symbol)) => index
            .symbols
            .get(symbol)
            .and_then(|name| files(name))
            .unwrap_or_else(|| missing(symbol)),
        Some(Question::ListServices(_)) => Reply::Services(ListServiceResponse {
            service: SERVICES
                .iter()
                .map(|name| ServiceResponse {
                    name: (*name).to_owned(),
                })
                .collect(),
        }),
        Some(Question::FileContainingExtension(asked)) => missing(&asked.containing_type),
        Some(Question::AllExtensionNumbersOfType(name)) => missing(name),
        None => Reply::Error(ErrorResponse {
            error_code: UNIMPLEMENTED,
            error_message: "the request asks nothing that is known here".to_owned(),
        }),
    };
    ServerReflectionResponse {
        valid_host: request.host.clone(),
        original_request: Some(request),
        message_response: Some(reply),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ask(question: Question) -> Reply {
        let request = ServerReflectionRequest {
            host: "device".to_owned(),
            message_request: Some(question),
        };
        let response = answer(request);
        assert_eq!(response.valid_host, "device");
        response.message_response.expect("an answer")
    }

    #[test]
    fn every_service_is_described_with_all_that_it_stands_on() {
        for service in SERVICES {
            let reply = ask(Question::FileContainingSymbol((*service).to_owned()));
            let Reply::Files(files) = reply else {
                panic!("{service}: {reply:?}");
            };
            let files = files.file_descriptor_proto.into_iter();
            let files: Vec<_> = files
                .map(|file| descriptor::File::decode(file).expect("descriptor"))
                .collect();
            assert!(service.starts_with(&files[0].package), "{service}");
            for dependency in files.iter().flat_map(|file| &file.dependency) {
                assert!(files.iter().any(|file| file.name == *dependency));
            }
        }
    }

    #[test]
    fn methods_and_nested_messages_are_symbols_and_nonsense_is_not() {
        for symbol in [
            "inference.GRPCInferenceService.ModelInfer",
            "inference.ModelInferRequest.InferInputTensor",
            "inference.DataType",
            "grpc.health.v1.HealthCheckResponse.ServingStatus",
        ] {
            let reply = ask(Question::FileContainingSymbol(symbol.to_owned()));
            assert!(matches!(reply, Reply::Files(_)), "{symbol}");
        }
        for question in [
            Question::FileContainingSymbol("inference.Nonsense".to_owned()),
            Question::FileByFilename("nonsense.proto".to_owned()),
            Question::AllExtensionNumbersOfType("inference.ModelInferRequest".to_owned()),
        ] {
            let Reply::Error(error) = ask(question) else {
                panic!("was found");
            };
            assert_eq!(error.error_code, NOT_FOUND);
        }
    }
}
