// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"bufio"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
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

// typeName writes a field's type the way the reference tables do.
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

func TestDescriptorsMatchTheGoldenList(t *testing.T) {
	got := strings.Join(lines(), "\n") + "\n"
	golden := filepath.Join("testdata", "protocol.txt")
	if os.Getenv("UPDATE_GOLDEN") != "" {
		if err := os.WriteFile(golden, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(golden)
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(strings.Split(string(want), "\n"), strings.Split(got, "\n")); d != "" {
		t.Errorf("the wire protocol changed (-golden +descriptors):\n%s", d)
	}
}

// TestDescriptorsMatchTheReferenceTables holds every RPC and field against the tables of the protocol's
// reference, where the checkout has it beside itself.
func TestDescriptorsMatchTheReferenceTables(t *testing.T) {
	f, err := os.Open("../../../shared/reference/kata-agent-protocol.md")
	if err != nil {
		t.Skipf("no reference tables here: %v", err)
	}
	defer f.Close()
	want := referenceLines(t, f)
	if len(want) < 400 {
		t.Fatalf("only %d lines read from the reference: the reader of the tables is broken", len(want))
	}
	got := map[string]bool{}
	for _, l := range lines() {
		got[l] = true
	}
	for _, w := range want {
		if !got[w] {
			t.Errorf("reference has %q, our descriptors do not", w)
		}
		delete(got, w)
	}
	for l := range got {
		if !strings.HasPrefix(l, "message ") { // empty messages have no row of their own number
			t.Errorf("our descriptors have %q, the reference does not", l)
		}
	}
}

var rpcRow = regexp.MustCompile(`^\| (\w+) \| (\w+) \| ([\w.]+) \|$`)

func referenceLines(t *testing.T, f *os.File) []string {
	t.Helper()
	var out []string
	var service, message, section string
	sc := bufio.NewScanner(f)
	for sc.Scan() {
		l := sc.Text()
		if strings.HasPrefix(l, "## ") {
			section = l
		}
		switch {
		case strings.HasPrefix(l, "### `grpc."):
			service = strings.TrimSuffix(strings.Fields(l)[1], "`")[1:]
		case strings.HasPrefix(l, "### Confidential Data Hub"):
			message = "skip"
		case strings.HasPrefix(section, "## 3.") && rpcRow.MatchString(l) && !strings.HasPrefix(l, "| RPC"):
			m := rpcRow.FindStringSubmatch(l)
			out = append(out, fmt.Sprintf("rpc %s/%s %s %s", service, m[1], m[2], base(m[3])))
		case strings.HasPrefix(section, "## 4.") && strings.HasPrefix(l, "|") && !strings.HasPrefix(l, "|---"):
			if message == "skip" {
				continue
			}
			c := strings.Split(strings.Trim(l, "|"), "|")
			if n := strings.Trim(strings.TrimSpace(c[0]), "`"); n != "" {
				message = n
			}
			num := strings.TrimSpace(c[1])
			if num == "" || num[0] < '0' || num[0] > '9' {
				continue
			}
			out = append(out, fmt.Sprintf("field %s %s %s %s", message, num, strings.TrimSpace(c[2]), fieldType(strings.TrimSpace(c[3]))))
		}
	}
	if err := sc.Err(); err != nil {
		t.Fatal(err)
	}
	return out
}

func fieldType(s string) string {
	if rest, ok := strings.CutPrefix(s, "repeated "); ok {
		return "repeated " + base(rest)
	}
	return base(s)
}

// base drops a package or message qualifier: "types.Interface" is "Interface".
func base(s string) string {
	if strings.HasPrefix(s, "map<") {
		return s
	}
	return s[strings.LastIndexByte(s, '.')+1:]
}
