// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package katarego

import (
	"cmp"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"
)

// verdictCase is one request of genpolicy's tests, with the verdict of Kata's agent.
type verdictCase struct {
	Description string
	Kind        string
	Allowed     bool
	Request     map[string]any
}

// kata returns the directories of the stored policy data and of a checkout of kata-containers.
func kata(t *testing.T) (data, source string) {
	t.Helper()
	data = cmp.Or(os.Getenv("COCO_KATA_POLICY"), "/work/shared/vectors/kata-policy")
	source = filepath.Join(os.Getenv("COCO_KATA_SRC"), "src/tools/genpolicy")
	if _, err := os.Stat(data); err != nil {
		t.Skipf("no stored policy data (COCO_KATA_POLICY): %v", err)
	}
	if _, err := os.Stat(filepath.Join(source, "rules.rego")); err != nil {
		t.Skipf("COCO_KATA_SRC is no checkout of kata-containers: %v", err)
	}
	return data, source
}

// policyOf compiles the policy of a set of cases as genpolicy writes it.
func policyOf(t *testing.T, source, data string) *Policy {
	t.Helper()
	rules, err := os.ReadFile(filepath.Join(source, "rules.rego"))
	if err != nil {
		t.Fatal(err)
	}
	object, err := os.ReadFile(data)
	if err != nil {
		t.Fatal(err)
	}
	p, err := Compile(t.Context(), string(rules)+"\npolicy_data := "+string(object)+"\n")
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func readCases(t *testing.T, name string) []verdictCase {
	t.Helper()
	text, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	var cases []verdictCase
	if err := json.Unmarshal(text, &cases); err != nil {
		t.Fatal(err)
	}
	return cases
}

// input makes the input of a case by way of the protocol's message, so that fields which the case leaves out have
// their defaults, as in Kata's tests.
func (c verdictCase) input(t *testing.T) any {
	t.Helper()
	delete(c.Request, "type")
	if c.Kind == "CopyFileRequest" { // Kata's tests have the form of its input
		full := map[string]any{
			"path": "", "file_type": "Unknown", "symlink_target": nil, "file_size": 0, "file_mode": 0, "dir_mode": 0,
			"uid": 0, "gid": 0, "offset": 0,
		}
		for k, v := range c.Request {
			full[k] = v
		}
		return full
	}
	typ, err := protoregistry.GlobalTypes.FindMessageByName(protoreflect.FullName("grpc." + c.Kind))
	if err != nil {
		t.Fatal(err)
	}
	m := typ.New()
	if err := fill(m, c.Request); err != nil {
		t.Fatalf("%s: %v", c.Description, err)
	}
	wire, err := proto.Marshal(m.Interface())
	if err != nil {
		t.Fatal(err)
	}
	back := typ.New().Interface()
	if err := proto.Unmarshal(wire, back); err != nil {
		t.Fatal(err)
	}
	_, input, err := Input(back)
	if err != nil {
		t.Fatal(err)
	}
	return input
}

// fill is the reverse of Input.
func fill(m protoreflect.Message, from map[string]any) error {
	for key, v := range from {
		fd := m.Descriptor().Fields().ByName(protoreflect.Name(strings.TrimSuffix(key, "_")))
		if fd == nil { // the cases have names of older protocols, which Kata's tests leave out
			continue
		}
		if err := fillField(m, fd, v); err != nil {
			return fmt.Errorf("%s: %w", key, err)
		}
	}
	return nil
}

func fillField(m protoreflect.Message, fd protoreflect.FieldDescriptor, v any) error {
	switch v := v.(type) {
	case nil:
		return nil
	case []any:
		list := m.Mutable(fd).List()
		for _, e := range v {
			if fd.Message() == nil {
				list.Append(scalarOf(fd, e))
				continue
			}
			if err := fill(list.AppendMutable().Message(), e.(map[string]any)); err != nil {
				return err
			}
		}
	case map[string]any:
		if !fd.IsMap() {
			return fill(m.Mutable(fd).Message(), v)
		}
		for k, e := range v {
			m.Mutable(fd).Map().Set(protoreflect.ValueOfString(k).MapKey(), scalarOf(fd.MapValue(), e))
		}
	default:
		m.Set(fd, scalarOf(fd, v))
	}
	return nil
}

func scalarOf(fd protoreflect.FieldDescriptor, v any) protoreflect.Value {
	n, _ := v.(float64)
	switch fd.Kind() {
	case protoreflect.Int32Kind:
		return protoreflect.ValueOfInt32(int32(n))
	case protoreflect.Int64Kind:
		return protoreflect.ValueOfInt64(int64(n))
	case protoreflect.Uint32Kind:
		return protoreflect.ValueOfUint32(uint32(n))
	case protoreflect.Uint64Kind:
		return protoreflect.ValueOfUint64(uint64(n))
	case protoreflect.EnumKind:
		return protoreflect.ValueOfEnum(protoreflect.EnumNumber(n))
	}
	return protoreflect.ValueOf(v)
}

// TestVerdictsOfKatasOwnCases runs the cases of genpolicy in their order, with their state.
func TestVerdictsOfKatasOwnCases(t *testing.T) {
	data, source := kata(t)
	sets, err := filepath.Glob(filepath.Join(data, "*.json"))
	if err != nil {
		t.Fatal(err)
	}
	cases, agree := 0, 0
	for _, set := range sets {
		name := strings.TrimSuffix(filepath.Base(set), ".json")
		if name == "images" {
			continue
		}
		p := policyOf(t, source, set)
		dir := filepath.Join(source, "tests/policy/testdata", strings.ReplaceAll(name, "-", "/"))
		for _, c := range readCases(t, filepath.Join(dir, "testcases.json")) {
			cases++
			d, err := p.AskAbout(t.Context(), c.Kind, c.input(t))
			if err == nil {
				err = p.Commit(t.Context(), d)
			}
			if err != nil || d.Allowed != c.Allowed {
				t.Errorf("%s: %s: allowed %v, want %v: %v %s", name, c.Description, d.Allowed, c.Allowed, err, d.Reason)
				continue
			}
			agree++
		}
	}
	t.Logf("%d of %d verdicts are those of Kata's agent", agree, cases)
	if cases < 100 {
		t.Errorf("only %d cases were found", cases)
	}
}

// TestHolesOfKatasRules holds that the evaluation is Kata's also where its rules are wrong: what they allow is allowed,
// so that whoever brings such a policy gets neither more nor less. Package engine denies them.
func TestHolesOfKatasRules(t *testing.T) {
	data, source := kata(t)
	sets, err := filepath.Glob(filepath.Join(data, "kata-allows", "*.json"))
	if err != nil {
		t.Fatal(err)
	}
	n := 0
	for _, set := range sets {
		name := filepath.Base(set)
		below := strings.ReplaceAll(strings.TrimSuffix(name, ".json"), "-", "/")
		dir := filepath.Join(source, "tests/policy/testdata", below)
		own := readCases(t, filepath.Join(dir, "testcases.json"))
		p := policyOf(t, source, filepath.Join(data, name))
		for _, c := range readCases(t, set) {
			if strings.HasPrefix(c.Description, "second instance") {
				allowFirst(t, p, own)
			}
			d, err := p.AskAbout(t.Context(), c.Kind, c.input(t))
			if err != nil || !d.Allowed {
				t.Errorf("%s: %s: %v %s", name, c.Description, err, d.Reason)
			}
			n++
		}
	}
	if n != 68 {
		t.Errorf("%d requests were found, not 68", n)
	}
}

// allowFirst has the first request of a set that is allowed handled.
func allowFirst(t *testing.T, p *Policy, cases []verdictCase) {
	t.Helper()
	for _, c := range cases {
		if !c.Allowed || c.Kind != "CreateContainerRequest" {
			continue
		}
		d, err := p.AskAbout(t.Context(), c.Kind, c.input(t))
		if err == nil {
			err = p.Commit(t.Context(), d)
		}
		if err != nil || !d.Allowed {
			t.Fatalf("%s: %v %s", c.Description, err, d.Reason)
		}
		return
	}
	t.Fatal("no case is allowed")
}
