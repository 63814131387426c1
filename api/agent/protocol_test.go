// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"fmt"
	"os"
	"path/filepath"
	"sort"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/reflect/protoreflect"

	"github.com/coco-shim/coco/api/agent/types"
)

// firstOwn is where field numbers of our own begin; below it every field is the protocol's.
const firstOwn = 1000

// files returns all descriptors of the protocol.
func files() []protoreflect.FileDescriptor {
	return []protoreflect.FileDescriptor{
		File_coco_agent_agent_proto, File_coco_agent_oci_proto, File_coco_agent_health_proto,
		types.File_coco_agent_types_proto,
	}
}

// lines renders each RPC and each field below firstOwn as one line, sorted.
func lines() []string {
	var out []string
	for _, f := range files() {
		for i := range f.Services().Len() {
			s := f.Services().Get(i)
			for j := range s.Methods().Len() {
				m := s.Methods().Get(j)
				out = append(out, fmt.Sprintf("rpc %s/%s %s %s", s.FullName(), m.Name(), m.Input().Name(), m.Output().Name()))
			}
		}
		for i := range f.Messages().Len() {
			out = append(out, messageLines(f.Messages().Get(i))...)
		}
	}
	sort.Strings(out)
	return out
}

func messageLines(m protoreflect.MessageDescriptor) []string {
	if m.Fields().Len() > 0 && m.Fields().Get(0).Number() >= firstOwn && !m.IsMapEntry() {
		return nil // a message of our own
	}
	out := []string{fmt.Sprintf("message %s", m.Name())}
	for i := range m.Fields().Len() {
		f := m.Fields().Get(i)
		if f.Number() < firstOwn {
			out = append(out, fmt.Sprintf("field %s %d %s %s", m.Name(), f.Number(), f.Name(), typeName(f)))
		}
	}
	return out
}

// typeName writes a field's type as the table does.
func typeName(f protoreflect.FieldDescriptor) string {
	one := func(f protoreflect.FieldDescriptor) string {
		switch f.Kind() {
		case protoreflect.MessageKind:
			return string(f.Message().Name())
		case protoreflect.EnumKind:
			return string(f.Enum().Name())
		}
		return f.Kind().String()
	}
	switch {
	case f.IsMap():
		return "map<" + one(f.MapKey()) + "," + one(f.MapValue()) + ">"
	case f.IsList():
		return "repeated " + one(f)
	case f.HasOptionalKeyword():
		return "optional " + one(f)
	}
	return one(f)
}

// TestDescriptorsMatchTheTable holds every RPC and field against the table of Kata's agent protocol, release 4.1. The
// table is written by hand, from the protocol and not from our descriptors: a line of it changes when Kata's protocol
// does.
func TestDescriptorsMatchTheTable(t *testing.T) {
	b, err := os.ReadFile(filepath.Join("testdata", "protocol.txt"))
	if err != nil {
		t.Fatal(err)
	}
	var want []string
	for line := range strings.Lines(string(b)) {
		if !strings.HasPrefix(line, "#") {
			want = append(want, strings.TrimSuffix(line, "\n"))
		}
	}
	if d := cmp.Diff(want, lines()); d != "" {
		t.Errorf("our descriptors are not the protocol's (-table +descriptors):\n%s", d)
	}
}
