#!/bin/sh
# Regenerates lib/cri/gen from the CRI definition of k8s.io/cri-api and lib/cri/proto; needs npm and Go.
set -eu
cd "$(dirname "$0")/../.."
version=v0.37.2
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
mkdir "$work/protos"
(cd "$work" && npm install --silent @bufbuild/buf@1.75.0 @bufbuild/protoc-gen-es@2.17.0 @bufbuild/protobuf@2.17.0)
module=$(go mod download -json "k8s.io/cri-api@$version" | sed -n 's/.*"Dir": "\(.*\)".*/\1/p')
cp "$module/pkg/apis/runtime/v1/api.proto" "$work/protos/cri.proto"
cp lib/cri/proto/containerd_events.proto "$work/protos/"
printf 'version: v2\nmodules:\n  - path: protos\n' > "$work/buf.yaml"
printf 'version: v2\nplugins:\n  - local: node_modules/.bin/protoc-gen-es\n    out: gen\n    opt: [target=ts, import_extension=ts]\n' > "$work/buf.gen.yaml"
(cd "$work" && node_modules/.bin/buf generate)
cp "$work"/gen/*.ts lib/cri/gen/
