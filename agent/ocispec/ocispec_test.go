// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package ocispec

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/google/go-cmp/cmp"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"

	"github.com/coco-shim/coco/api/agent"
	"github.com/coco-shim/coco/internal/worktest"
)

// filler gives every field of a message a value that occurs nowhere else.
type filler struct {
	next   uint64
	values map[string]string // value, as JSON has it, to the field's path
}

func (f *filler) message(m protoreflect.Message, path string) {
	fields := m.Descriptor().Fields()
	for i := range fields.Len() {
		fd := fields.Get(i)
		p := path + "." + string(fd.Name())
		if p == "Spec.Windows" || p == "Spec.Solaris" { // refused
			continue
		}
		switch {
		case fd.IsMap():
			k, v := f.text(p), f.text(p)
			m.Mutable(fd).Map().Set(protoreflect.ValueOfString(k).MapKey(), protoreflect.ValueOfString(v))
		case fd.IsList():
			list := m.Mutable(fd).List()
			for range 2 {
				if fd.Kind() == protoreflect.MessageKind {
					e := list.NewElement()
					f.message(e.Message(), p)
					list.Append(e)
				} else {
					list.Append(f.scalar(fd, p))
				}
			}
		case fd.Kind() == protoreflect.MessageKind:
			f.message(m.Mutable(fd).Message(), p)
		default:
			m.Set(fd, f.scalar(fd, p))
		}
	}
}

func (f *filler) text(p string) string {
	f.next++
	s := fmt.Sprintf("v%d", f.next)
	f.values[`"`+s+`"`] = p
	return s
}

func (f *filler) scalar(fd protoreflect.FieldDescriptor, p string) protoreflect.Value {
	if fd.Kind() == protoreflect.StringKind {
		switch p {
		case "Spec.Linux.Devices.Type", "Spec.Linux.Resources.Devices.Type":
			return protoreflect.ValueOfString("c") // numbers count only for devices
		}
		return protoreflect.ValueOfString(f.text(p))
	}
	f.next++
	n := f.next
	if fd.Kind() != protoreflect.BoolKind {
		f.values[fmt.Sprint(n)] = p
	}
	switch fd.Kind() {
	case protoreflect.BoolKind:
		return protoreflect.ValueOfBool(true)
	case protoreflect.Uint32Kind:
		return protoreflect.ValueOfUint32(uint32(n))
	case protoreflect.Uint64Kind:
		return protoreflect.ValueOfUint64(n)
	case protoreflect.Int64Kind:
		return protoreflect.ValueOfInt64(int64(n))
	}
	panic("kind " + fd.Kind().String())
}

// leaves collects every value of a JSON document, keys of maps included.
func leaves(v any, out map[string]int) {
	switch v := v.(type) {
	case map[string]any:
		for k, e := range v {
			out[`"`+k+`"`]++
			leaves(e, out)
		}
	case []any:
		for _, e := range v {
			leaves(e, out)
		}
	case string:
		out[`"`+v+`"`]++
	case json.Number:
		out[v.String()]++
	case bool:
		out[fmt.Sprint(v)]++
	}
}

// TestNothingIsLost fills every field that the protocol has and looks for its value in config.json.
func TestNothingIsLost(t *testing.T) {
	f := &filler{next: 100, values: map[string]string{}}
	in := &agent.Spec{}
	f.message(in.ProtoReflect(), "Spec")
	got, err := Spec(in)
	if err != nil {
		t.Fatal(err)
	}
	b, err := json.Marshal(got)
	if err != nil {
		t.Fatal(err)
	}
	dec := json.NewDecoder(strings.NewReader(string(b)))
	dec.UseNumber()
	var doc any
	if err := dec.Decode(&doc); err != nil {
		t.Fatal(err)
	}
	seen := map[string]int{}
	leaves(doc, seen)
	for v, path := range f.values {
		if seen[v] != 1 {
			t.Errorf("%s: its value %s occurs %d times in config.json", path, v, seen[v])
		}
	}
	if bools := seen["true"]; bools != 6 {
		t.Errorf("%d booleans arrived, want 6: terminal, noNewPrivileges, readonly, disableOOMKiller, and two device rules",
			bools)
	}
}

func TestRoundTrip(t *testing.T) {
	f := &filler{next: 100, values: map[string]string{}}
	in := &agent.Spec{}
	f.message(in.ProtoReflect(), "Spec")
	one, err := Spec(in)
	if err != nil {
		t.Fatal(err)
	}
	b, err := json.Marshal(one)
	if err != nil {
		t.Fatal(err)
	}
	var two specs.Spec
	if err := json.Unmarshal(b, &two); err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(one, &two); d != "" {
		t.Errorf("through JSON (-want +got):\n%s", d)
	}
	wire, err := proto.Marshal(in)
	if err != nil {
		t.Fatal(err)
	}
	back := &agent.Spec{}
	if err := proto.Unmarshal(wire, back); err != nil {
		t.Fatal(err)
	}
	three, err := Spec(back)
	if d := cmp.Diff(one, three); err != nil || d != "" {
		t.Errorf("through the wire (-want +got), %v:\n%s", err, d)
	}
}

// TestNothingIsShared: a change of a specification does not change the message that it came from.
func TestNothingIsShared(t *testing.T) {
	f := &filler{next: 100, values: map[string]string{}}
	in := &agent.Spec{}
	f.message(in.ProtoReflect(), "Spec")
	got, err := Spec(in)
	if err != nil {
		t.Fatal(err)
	}
	before, err := json.Marshal(got)
	if err != nil {
		t.Fatal(err)
	}
	spoil(in.ProtoReflect())
	after, err := json.Marshal(got)
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(string(before), string(after)); d != "" {
		t.Errorf("the specification changed with the message (-before +after):\n%s", d)
	}
}

// spoil clears every field of a message, in place.
func spoil(m protoreflect.Message) {
	m.Range(func(fd protoreflect.FieldDescriptor, v protoreflect.Value) bool {
		switch {
		case fd.IsMap():
			v.Map().Range(func(k protoreflect.MapKey, _ protoreflect.Value) bool { v.Map().Clear(k); return true })
		case fd.IsList():
			for i := range v.List().Len() {
				if fd.Message() != nil {
					spoil(v.List().Get(i).Message())
				} else {
					v.List().Set(i, v.List().NewElement())
				}
			}
		case fd.Message() != nil:
			spoil(v.Message())
		}
		m.Clear(fd)
		return true
	})
}

func TestZeroMeansAbsent(t *testing.T) {
	got, err := Spec(&agent.Spec{
		Process: &agent.Process{Args: []string{"x"}}, Root: &agent.Root{},
		Linux: &agent.Linux{Resources: &agent.LinuxResources{
			Memory: &agent.LinuxMemory{}, CPU: &agent.LinuxCPU{}, Pids: &agent.LinuxPids{}, BlockIO: &agent.LinuxBlockIO{},
			Devices: []*agent.LinuxDeviceCgroup{
				{Allow: false, Access: "rwm"},
				{Allow: true, Type: "c", Access: "m"},
				{Allow: true, Type: "c", Major: -1, Minor: -1, Access: "m"},
				{Allow: true, Type: "a", Major: 8, Access: "m"},
				{Allow: true, Major: 8, Access: "m"},
			},
		}},
	})
	if err != nil {
		t.Fatal(err)
	}
	want := &specs.Spec{
		Process: &specs.Process{Args: []string{"x"}, Cwd: "/"}, Root: &specs.Root{},
		Linux: &specs.Linux{Resources: &specs.LinuxResources{
			Memory: &specs.LinuxMemory{}, CPU: &specs.LinuxCPU{}, BlockIO: &specs.LinuxBlockIO{},
			Devices: []specs.LinuxDeviceCgroup{
				{Access: "rwm"},
				{Allow: true, Type: "c", Access: "m"},
				{Allow: true, Type: "c", Access: "m"},
				{Allow: true, Type: "a", Access: "m"},
				{Allow: true, Major: new(int64(8)), Minor: new(int64(0)), Access: "m"},
			},
		}},
	}
	if d := cmp.Diff(want, got); d != "" {
		t.Errorf("(-want +got):\n%s", d)
	}
}

func TestSeccompErrnoKeepsPresence(t *testing.T) {
	got, err := seccomp(&agent.LinuxSeccomp{DefaultAction: "SCMP_ACT_ERRNO", Syscalls: []*agent.LinuxSyscall{
		{Names: []string{"a"}}, {Names: []string{"b"}, ErrnoRet: &agent.LinuxSyscall_Errnoret{}},
	}})
	if err != nil || got.Syscalls[0].ErrnoRet != nil || got.Syscalls[1].ErrnoRet == nil {
		t.Errorf("got %+v, %v", got, err)
	}
}

func TestRefusals(t *testing.T) {
	ok := func() *agent.Spec {
		return &agent.Spec{Process: &agent.Process{Args: []string{"x"}}, Root: &agent.Root{}, Linux: &agent.Linux{}}
	}
	for name, spoil := range map[string]func(*agent.Spec){
		"no process":        func(s *agent.Spec) { s.Process = nil },
		"no arguments":      func(s *agent.Spec) { s.Process.Args = nil },
		"no root":           func(s *agent.Spec) { s.Root = nil },
		"no linux":          func(s *agent.Spec) { s.Linux = nil },
		"windows":           func(s *agent.Spec) { s.Windows = &agent.Windows{} },
		"score":             func(s *agent.Spec) { s.Process.OOMScoreAdj = 1001 },
		"filter of nothing": func(s *agent.Spec) { s.Linux.Seccomp = &agent.LinuxSeccomp{} },
		"weight": func(s *agent.Spec) {
			s.Linux.Resources = &agent.LinuxResources{BlockIO: &agent.LinuxBlockIO{Weight: 1 << 20}}
		},
	} {
		s := ok()
		if _, err := Spec(s); err != nil {
			t.Fatal(err)
		}
		spoil(s)
		if _, err := Spec(s); !errdefs.IsInvalidArgument(err) {
			t.Errorf("%s: %v, want ErrInvalidArgument", name, err)
		}
	}
}

func FuzzSpec(f *testing.F) {
	fill := &filler{next: 100, values: map[string]string{}}
	in := &agent.Spec{}
	fill.message(in.ProtoReflect(), "Spec")
	b, err := proto.Marshal(in)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(b)
	f.Fuzz(func(t *testing.T, b []byte) {
		defer worktest.Bound(t, len(b))()
		s := &agent.Spec{}
		if proto.Unmarshal(b, s) != nil {
			return
		}
		if got, err := Spec(s); err == nil {
			if _, err := json.Marshal(got); err != nil {
				t.Error(err)
			}
		}
	})
}
