// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package engine

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"

	pb "github.com/coco-shim/coco/api/agent"
	"github.com/coco-shim/coco/internal/worktest"

	"github.com/coco-shim/coco/policy/compare"
)

// mutation is one change of one field.
type mutation struct {
	path string // of the field, without indices
	what string
	m    proto.Message
}

// mutations are all changes of single fields of a message: other values, list elements that are added, removed,
// repeated or swapped, entries of maps, messages that come or go. All fields of the protocol are changed, also those
// that the shim leaves out.
//
// choose says which of them are made: a change costs a copy of the message.
func mutations(m proto.Message, choose func(change string) bool) []mutation {
	var out []mutation
	shape := proto.Clone(m)
	walk(shape.ProtoReflect(), "", func(path, what string, change func()) {
		if !choose(path + ": " + what) {
			return
		}
		change()
		out = append(out, mutation{path, what, proto.Clone(m)})
		proto.Reset(m)
		proto.Merge(m, shape)
	}, func() protoreflect.Message { return m.ProtoReflect() })
	return out
}

// walk finds the fields of a message that is not changed; at leads to the same place of the one that is, which is
// written anew after each change.
func walk(m protoreflect.Message, path string, try func(path, what string, change func()),
	at func() protoreflect.Message,
) {
	fields := m.Descriptor().Fields()
	for i := range fields.Len() {
		fd := fields.Get(i)
		p := strings.TrimPrefix(path+"."+string(fd.Name()), ".")
		switch {
		case fd.IsMap():
			ofMap(fd, m, p, try, at)
		case fd.IsList():
			ofList(fd, m, p, try, at)
		case fd.Message() != nil:
			if !m.Has(fd) {
				try(p, "set", func() { at().Mutable(fd) })
				continue
			}
			try(p, "cleared", func() { at().Clear(fd) })
			walk(m.Get(fd).Message(), p, try, func() protoreflect.Message { return at().Mutable(fd).Message() })
		default:
			if m.Has(fd) {
				try(p, "cleared", func() { at().Clear(fd) })
			}
			try(p, "changed", func() { at().Set(fd, other(fd, at().Get(fd))) })
		}
	}
}

func ofMap(fd protoreflect.FieldDescriptor, m protoreflect.Message, p string, try func(string, string, func()),
	at func() protoreflect.Message,
) {
	if fd.MapValue().Kind() != protoreflect.StringKind {
		return
	}
	try(p, "entry added", func() {
		at().Mutable(fd).Map().Set(protoreflect.ValueOfString("zz.new").MapKey(), protoreflect.ValueOfString("1"))
	})
	m.Get(fd).Map().Range(func(k protoreflect.MapKey, v protoreflect.Value) bool {
		try(p, "entry removed", func() { at().Mutable(fd).Map().Clear(k) })
		try(p, "entry changed", func() { at().Mutable(fd).Map().Set(k, protoreflect.ValueOfString(v.String()+"x")) })
		return true
	})
}

func ofList(fd protoreflect.FieldDescriptor, m protoreflect.Message, p string, try func(string, string, func()),
	at func() protoreflect.Message,
) {
	list := m.Get(fd).List()
	n := list.Len()
	element := func() protoreflect.Value { return at().NewField(fd).List().NewElement() }
	try(p, "element added", func() {
		v := element()
		if fd.Message() == nil {
			v = other(fd, v)
		}
		at().Mutable(fd).List().Append(v)
	})
	for i := range n {
		l := func() protoreflect.List { return at().Mutable(fd).List() }
		try(p, "element removed", func() {
			for j := i; j < n-1; j++ {
				l().Set(j, l().Get(j+1))
			}
			l().Truncate(n - 1)
		})
		try(p, "element repeated", func() { l().Append(l().Get(i)) })
		if i > 0 && !equal(list.Get(i), list.Get(i-1)) {
			try(p, "elements swapped", func() {
				a, b := l().Get(i-1), l().Get(i)
				l().Set(i-1, b)
				l().Set(i, a)
			})
		}
		if fd.Message() == nil {
			try(p, "element changed", func() { l().Set(i, other(fd, l().Get(i))) })
			continue
		}
		walk(list.Get(i).Message(), p, try, func() protoreflect.Message { return l().Get(i).Message() })
	}
}

func equal(a, b protoreflect.Value) bool { return a.Equal(b) }

// other is another value of a field's type.
func other(fd protoreflect.FieldDescriptor, v protoreflect.Value) protoreflect.Value {
	switch fd.Kind() {
	case protoreflect.StringKind:
		return protoreflect.ValueOfString(v.String() + "x")
	case protoreflect.BytesKind:
		return protoreflect.ValueOfBytes(append(slices.Clone(v.Bytes()), 1))
	case protoreflect.BoolKind:
		return protoreflect.ValueOfBool(!v.Bool())
	case protoreflect.EnumKind:
		return protoreflect.ValueOfEnum(v.Enum() + 1)
	case protoreflect.Int32Kind:
		return protoreflect.ValueOfInt32(int32(v.Int()) + 1)
	case protoreflect.Int64Kind:
		return protoreflect.ValueOfInt64(v.Int() + 1)
	case protoreflect.Uint32Kind:
		return protoreflect.ValueOfUint32(uint32(v.Uint()) + 1)
	case protoreflect.Uint64Kind:
		return protoreflect.ValueOfUint64(v.Uint() + 1)
	}
	panic(fd.Kind())
}

// excuses are the changes that are not denied, each with the reason. Expressions are for "path: what".
var excuses = []struct {
	change *regexp.Regexp
	why    string
}{
	{regexp.MustCompile(`^sandbox_id: `), "the id of the sandbox is the host's"},
	{
		regexp.MustCompile(`^exec_id: `),
		"the id of an exec is the host's; that of a container's first process is the container's",
	},
	{regexp.MustCompile(`^std(in|out|err)_port: `), "numbers of streams, which the broker checks"},
	{
		regexp.MustCompile(`^storages.source: |^devices.vm_path: `),
		"addresses of disks are the host's: root hash or the guest's own key decides",
	},
	{regexp.MustCompile(`^(OCI.Process|process).Env: elements swapped`), "no two variables have the same name"},
	{regexp.MustCompile(`^(OCI.Process|process).ConsoleSize`), "the size of a terminal"},
	{regexp.MustCompile(`^(OCI.Process|process).OOMScoreAdj: `), "which process the kernel ends first: availability"},
	{
		regexp.MustCompile(`^(OCI.Process|process).(User.AdditionalGids|Capabilities.[A-Z][a-z]*): elements swapped`),
		"a set",
	},
	{regexp.MustCompile(`^OCI.Linux.(MaskedPaths|ReadonlyPaths|Namespaces): elements swapped`), "a set"},
	{regexp.MustCompile(`^OCI.Version: `), "the version of the specification that the engine writes"},
	{
		regexp.MustCompile(`^OCI.Linux.Resources.(Memory|CPU|Pids)|^OCI.Linux.Resources.Unified: entry (changed|removed)`),
		"limits: availability",
	},
	{
		regexp.MustCompile(`^OCI.Mounts.source: changed`),
		"only the place of a copied volume that no container had before: see TestVolumesKeepTheirPlace",
	},
	{regexp.MustCompile(`^(OCI.Process|process).Capabilities: (set|cleared)`), "a process without any capability"},
}

func excused(method string, m mutation) bool {
	if method == "CreateContainer" && m.path == "exec_id" {
		return false
	}
	name := m.path + ": " + m.what
	for i := range excuses {
		if excuses[i].change.MatchString(name) {
			used[i] = true
			return true
		}
	}
	return false
}

// used are the excuses that were needed.
var used = map[int]bool{}

var indices = regexp.MustCompile(`\[[^\]]*\]`)

// named says whether a denial names the field that was changed, or the message that it belongs to.
func named(d *compare.Denial, m mutation) bool {
	got := indices.ReplaceAllString(d.Field, "")
	return got == m.path || strings.HasPrefix(got, m.path+".") || strings.HasPrefix(m.path, got+".") ||
		got == strings.ReplaceAll(m.path, "IPAddresses.address", "IPAddresses")
}

// allMutations is the environment variable that has all changes of all pods tried, which takes minutes.
const allMutations = "COCO_ALL_MUTATIONS"

// TestEverySingleChangeIsDenied changes fields of the requests of 200 pods: each one with allMutations, else one of
// 100.
func TestEverySingleChangeIsDenied(t *testing.T) {
	const pods, part = 200, 100
	all, r := os.Getenv(allMutations) != "", rand.New(rand.NewPCG(1, 1))
	tried := map[string]bool{} // each kind of change is made at least once
	choose := func(change string) bool {
		first := !tried[change]
		tried[change] = true
		return all || first || r.IntN(part) == 0
	}
	total, right := 0, 0
	wrong := map[string]string{}
	check := func(seed uint64, e *Engine, method string, m proto.Message) {
		g, err := e.Check("/"+service+method, m)
		if err != nil || g == nil {
			t.Fatalf("seed %d: %s is denied: %v", seed, method, err)
		}
		for _, mu := range mutations(proto.Clone(m), choose) {
			_, err := e.Check("/"+service+method, mu.m)
			name := mu.path + ": " + mu.what
			if err == nil {
				if !excused(method, mu) {
					t.Errorf("seed %d: %s, %s: allowed", seed, method, name)
				}
				continue
			}
			var d *compare.Denial
			if !errors.As(err, &d) || len(err.Error()) > compare.MaxDenial || strings.ContainsAny(err.Error(), "\n\x00") {
				t.Fatalf("seed %d: %s, %s: %q", seed, method, name, err)
			}
			total++
			if named(d, mu) {
				right++
			} else {
				wrong[method+" "+name] = d.Field
			}
		}
	}
	for seed := range uint64(pods) {
		p := newPod(t, seed)
		check(seed, New(p.policy), "CreateSandbox", p.sandbox)
		for i, c := range p.creates {
			check(seed, p.until(t, i, false), "CreateContainer", c)
			check(seed, p.until(t, i, true), "ExecProcess", p.execs[i])
		}
		if t.Failed() {
			t.FailNow()
		}
	}
	for i, x := range excuses {
		if !used[i] && all {
			t.Errorf("the excuse %q (%s) is not needed", x.change, x.why)
		}
	}
	t.Logf("%d changes denied, %d (%.1f %%) name the field", total, right, 100*float64(right)/float64(total))
	if right*100 < total*98 {
		var list []string
		for k, v := range wrong {
			list = append(list, fmt.Sprintf("%s: denied for %s", k, v))
		}
		slices.Sort(list)
		t.Errorf("too many denials name another field:\n%s", strings.Join(list, "\n"))
	}
}

// FuzzCheck: no message ends the engine, and a denial is one short line.
func FuzzCheck(f *testing.F) {
	p := newPod(f, 1)
	for _, m := range []proto.Message{p.sandbox, p.creates[0]} {
		b, err := proto.Marshal(m)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		defer worktest.Bound(t, len(b))()
		for method, m := range map[string]proto.Message{
			"CreateContainer": &pb.CreateContainerRequest{}, "CreateSandbox": &pb.CreateSandboxRequest{},
			"CopyFile": &pb.CopyFileRequest{}, "UpdateRoutes": &pb.UpdateRoutesRequest{},
		} {
			if proto.Unmarshal(b, m) != nil {
				continue
			}
			e := New(p.policy)
			if method != "CreateSandbox" {
				e = p.until(t, 0, false)
			}
			g, err := e.Check("/"+service+method, m)
			if (g == nil) == (err == nil) || err != nil && (len(err.Error()) > 1024 || strings.ContainsAny(err.Error(),
				"\n\x00")) {
				t.Errorf("%s: %v, %q", method, g, err)
			}
		}
	})
}
