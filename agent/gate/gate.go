// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

// Package gate checks messages of the host before anything acts on them: requests (Message), and the first line of a
// connection to a stream port (Greeting). A field that this agent does not know is refused by its name. Ignoring it
// would let the host believe in a setting that the guest does not have, and would show a policy less than the host
// has sent.
//
// The package is pure, except that Greeting reads and answers connections. Package guard decides what a request may
// ask for.
package gate

import (
	"fmt"
	"strconv"

	"github.com/containerd/errdefs"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
)

// Decode decodes a request, once, and checks that nothing in it is unknown.
func Decode(decode func(any) error, req any) (proto.Message, error) {
	m, ok := req.(proto.Message)
	if !ok {
		return nil, fmt.Errorf("%T is not a message: %w", req, errdefs.ErrInternal)
	}
	if err := decode(m); err != nil {
		name := m.ProtoReflect().Descriptor().Name()
		return nil, fmt.Errorf("decode %s: %s: %w", name, status.Convert(err).Message(), errdefs.ErrInvalidArgument)
	}
	return m, Message(m)
}

// Message refuses a message in which the decoder met a field that the protocol does not have, or that is not encoded as
// its type: in the message itself or in one that it contains, also in lists and maps. The error names the message by
// its path and the field by its number.
//
// The two fields of a map's entry are outside of this: the decoder keeps no others.
func Message(m proto.Message) error {
	r := m.ProtoReflect()
	path, field := unknown(r)
	if field == "" {
		return nil
	}
	return fmt.Errorf("%s%s: %s, which this agent does not know: host and guest image are not of the same release: %w",
		r.Descriptor().Name(), path, field, errdefs.ErrInvalidArgument)
}

// unknown finds an unknown field and returns the path from m to its message. No field: everything is known.
func unknown(m protoreflect.Message) (path, field string) {
	if raw := m.GetUnknown(); len(raw) > 0 {
		return "", describe(m.Descriptor(), raw)
	}
	m.Range(func(fd protoreflect.FieldDescriptor, v protoreflect.Value) bool {
		switch {
		case fd.IsMap():
			if fd.MapValue().Message() != nil {
				path, field = inMap(v.Map())
			}
		case fd.Message() == nil:
		case fd.IsList():
			path, field = inList(v.List())
		default:
			path, field = unknown(v.Message())
		}
		if field != "" {
			path = "." + string(fd.Name()) + path
		}
		return field == ""
	})
	return path, field
}

func inList(l protoreflect.List) (path, field string) {
	for i := range l.Len() {
		if path, field = unknown(l.Get(i).Message()); field != "" {
			return "[" + strconv.Itoa(i) + "]" + path, field
		}
	}
	return "", ""
}

func inMap(m protoreflect.Map) (path, field string) {
	m.Range(func(k protoreflect.MapKey, v protoreflect.Value) bool {
		if path, field = unknown(v.Message()); field != "" {
			path = fmt.Sprintf("[%.80q]%s", k.String(), path)
		}
		return field == ""
	})
	return path, field
}

// describe names the first of a message's unknown fields. A field of the protocol is among them if it came with
// another wire type than its own.
func describe(d protoreflect.MessageDescriptor, raw []byte) string {
	n, typ, _ := protowire.ConsumeTag(raw) // the decoder has read it
	if fd := d.Fields().ByNumber(n); fd != nil {
		return fmt.Sprintf("field %d (%s) with wire type %d", n, fd.Name(), typ)
	}
	return fmt.Sprintf("field %d", n)
}
