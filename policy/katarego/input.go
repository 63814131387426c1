// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package katarego

import (
	"fmt"
	"unicode/utf8"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"

	pb "github.com/coco-shim/coco/api/agent"
)

// ours is the number from which fields are not Kata's. A rule sees such a field if it is set, under its name in the
// protocol; else it is not there, so that the input is what Kata's agent would have made.
const ours = 1000

// maxBytes bounds the bytes of a field: as Kata's input has them, each is a number of its own.
const maxBytes = 64 << 10

// Input returns the name of a request's rule and the input that Kata's agent makes of it: the members are the fields of
// the protocol in their spelling there, with "type_" for "type"; a field without a value has its default; a message
// that is not there is null; bytes are a list of numbers, enumerations are numbers.
//
// A request to copy a file has no content: {path, file_type, symlink_target, file_size, file_mode, dir_mode, uid, gid,
// offset}.
func Input(m proto.Message) (name string, input map[string]any, err error) {
	r := m.ProtoReflect()
	name = string(r.Descriptor().Name())
	if c, ok := m.(*pb.CopyFileRequest); ok {
		input, err = copied(c)
	} else {
		input, err = object(r)
	}
	if err != nil {
		return "", nil, fmt.Errorf("%s: %w", name, err)
	}
	return name, input, nil
}

func object(m protoreflect.Message) (map[string]any, error) {
	out := map[string]any{}
	fields := m.Descriptor().Fields()
	for i := range fields.Len() {
		fd := fields.Get(i)
		if fd.Number() >= ours && !m.Has(fd) {
			continue
		}
		if o := fd.ContainingOneof(); o != nil && !o.IsSynthetic() {
			choice(out, o, m)
			continue
		}
		v, err := field(fd, m)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", fd.Name(), err)
		}
		out[spelled(fd)] = v
	}
	return out, nil
}

// choice adds a oneof: null, or an object with the field that is set, whose name begins with a capital letter.
func choice(out map[string]any, o protoreflect.OneofDescriptor, m protoreflect.Message) {
	out[string(o.Name())] = nil
	if fd := m.WhichOneof(o); fd != nil {
		name := []byte(fd.Name())
		if name[0] >= 'a' && name[0] <= 'z' {
			name[0] -= 'a' - 'A'
		}
		out[string(o.Name())] = map[string]any{string(name): scalar(fd, m.Get(fd))}
	}
}

// spelled is a field's name in Rust, where "type" is a word of the language.
func spelled(fd protoreflect.FieldDescriptor) string {
	if fd.Name() == "type" {
		return "type_"
	}
	return string(fd.Name())
}

func field(fd protoreflect.FieldDescriptor, m protoreflect.Message) (any, error) {
	switch v := m.Get(fd); {
	case fd.IsMap():
		out := map[string]any{}
		var err error
		v.Map().Range(func(k protoreflect.MapKey, v protoreflect.Value) bool {
			out[k.String()], err = single(fd.MapValue(), v)
			return err == nil
		})
		return out, err
	case fd.IsList():
		out := make([]any, 0, v.List().Len())
		for i := range v.List().Len() {
			e, err := single(fd, v.List().Get(i))
			if err != nil {
				return nil, err
			}
			out = append(out, e)
		}
		return out, nil
	case fd.Message() != nil && !m.Has(fd):
		return nil, nil
	default:
		return single(fd, v)
	}
}

func single(fd protoreflect.FieldDescriptor, v protoreflect.Value) (any, error) {
	switch {
	case fd.Message() != nil:
		return object(v.Message())
	case fd.Kind() != protoreflect.BytesKind:
		return scalar(fd, v), nil
	case len(v.Bytes()) > maxBytes:
		return nil, fmt.Errorf("%d bytes, a policy looks at %d at most", len(v.Bytes()), maxBytes)
	}
	out := make([]any, 0, len(v.Bytes()))
	for _, b := range v.Bytes() {
		out = append(out, int64(b))
	}
	return out, nil
}

func scalar(fd protoreflect.FieldDescriptor, v protoreflect.Value) any {
	switch fd.Kind() {
	case protoreflect.BoolKind:
		return v.Bool()
	case protoreflect.EnumKind:
		return int64(v.Enum())
	case protoreflect.StringKind:
		return v.String()
	case protoreflect.FloatKind, protoreflect.DoubleKind:
		return v.Float()
	case protoreflect.Uint32Kind, protoreflect.Uint64Kind, protoreflect.Fixed32Kind, protoreflect.Fixed64Kind:
		return v.Uint()
	}
	return v.Int()
}

// Kinds of files in CopyFileRequest.file_mode, as in inode(7), and their names in Kata's input.
const fileType = 0o170000

var fileTypes = map[uint32]string{0o100000: "Regular", 0o040000: "Directory", 0o120000: "Symlink"}

func copied(c *pb.CopyFileRequest) (map[string]any, error) {
	name := c.GetPath()
	if raw := c.GetRawPath(); len(raw) > 0 { // it replaces the path
		name = string(raw)
	}
	kind, ok := fileTypes[c.GetFileMode()&fileType]
	if !ok {
		kind = "Unknown"
	}
	out := map[string]any{
		"path": name, "file_type": kind, "symlink_target": nil, "file_size": c.GetFileSize(),
		"file_mode": uint64(c.GetFileMode()), "dir_mode": uint64(c.GetDirMode()), "uid": int64(c.GetUid()),
		"gid": int64(c.GetGid()), "offset": c.GetOffset(),
	}
	if kind == "Symlink" {
		out["symlink_target"] = string(c.GetData())
	}
	for key, v := range out {
		if text, ok := v.(string); ok && !utf8.ValidString(text) {
			return nil, fmt.Errorf("%s is no UTF-8", key)
		}
	}
	if c.GetRemove() {
		out["remove"] = true
	}
	if c.GetInner() {
		out["inner"] = true
	}
	if c.GetMtimeNs() != 0 {
		out["mtime_ns"] = c.GetMtimeNs()
	}
	return out, nil
}
