// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package katarego

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/proto"

	pb "github.com/coco-shim/coco/api/agent"
)

const head = "package agent_policy\nimport future.keywords.if\nimport future.keywords.in\n"

func compile(t *testing.T, rules string) *Policy {
	t.Helper()
	p, err := Compile(t.Context(), head+rules)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func TestOnlyAnAllowingValueAllows(t *testing.T) {
	const rule = "StartContainerRequest"
	const printing = rule + ` if { print("want c2, got", input.container_id); false }`
	object := func(allowed, op, path, value string) string {
		return fmt.Sprintf(` := {"allowed": %s, "ops": [{"op": %q, "path": %q, "value": %s}]}`, allowed, op, path, value)
	}
	for name, tc := range map[string]struct {
		rules string
		want  string // of the reason or the error; "" allows
	}{
		"true":               {rule + " := true", ""},
		"object":             {rule + ` := {"allowed": true}`, ""},
		"object, null ops":   {rule + ` := {"allowed": true, "ops": null}`, ""},
		"object, no ops":     {rule + ` := {"allowed": true, "ops": []}`, ""},
		"input":              {rule + ` if input.container_id == "c1"`, ""},
		"false":              {rule + " := false", "StartContainerRequest is blocked by policy"},
		"default":            {"default " + rule + " := false\n" + rule + ` if input.container_id == "c2"`, "blocked"},
		"prints":             {"default " + rule + " := false\n" + printing, "want c2, got c1"},
		"undefined":          {rule + ` if input.nothing`, "does not say"},
		"no rule":            {"OtherRequest := true", "does not say"},
		"object, denied":     {rule + object("false", "add", "/pstate/x", "1"), "blocked"},
		"object without it":  {rule + ` := {"ops": []}`, "neither a boolean"},
		"object, odd":        {rule + ` := {"allowed": "true"}`, "neither a boolean"},
		"object, odd ops":    {rule + ` := {"allowed": true, "ops": "x"}`, "neither a boolean"},
		"patch elsewhere":    {rule + object("true", "add", "/other", "1"), "more than the state"},
		"patch of nothing":   {rule + object("true", "remove", "/pstate/x", "1"), "patch"},
		"patch of all":       {rule + object("true", "replace", "", "1"), "more than the state"},
		"odd patch":          {rule + object("true", "mend", "/pstate/x", "1"), "patch"},
		"string":             {rule + ` := "true"`, "neither a boolean"},
		"number":             {rule + ` := 1`, "neither a boolean"},
		"set":                {rule + ` := {true}`, "neither a boolean"},
		"null":               {rule + ` := null`, "neither a boolean"},
		"conflict":           {rule + " := true if input.container_id\n" + rule + " := false if true", "conflict"},
		"failing function":   {rule + ` if to_number("x") == 1`, "does not say"},
		"state that is huge": {rule + object("true", "add", "/pstate/x", "numbers.range(1, 300000)"), "bytes"},
	} {
		p := compile(t, tc.rules)
		d, err := p.Ask(t.Context(), &pb.StartContainerRequest{ContainerId: "c1"})
		got := d.Reason
		if err != nil {
			got = err.Error()
		}
		if d.Allowed != (tc.want == "") || !strings.Contains(got, tc.want) || tc.want == "" && got != "" {
			t.Errorf("%s: allowed %v, %q, want %q", name, d.Allowed, got, tc.want)
		}
		if len(d.Reason) > maxReason {
			t.Errorf("%s: a reason of %d bytes", name, len(d.Reason))
		}
		if d.Allowed && err != nil {
			t.Errorf("%s: allowed in spite of %v", name, err)
		}
	}
	if (Decision{}).Allowed {
		t.Error("the zero value allows")
	}
}

func TestPoliciesThatAreRefused(t *testing.T) {
	brackets := func(s string) string { return strings.Repeat(s, 100_000) }
	for name, tc := range map[string]struct{ text, want string }{
		"none":            {"", "empty module"},
		"no Rego":         {"package agent_policy\nx {", "rego_parse_error"},
		"another package": {"package policy\nx := true", "data.policy"},
		"network":         {head + `x if http.send({"method": "get", "url": "http://a"}).body`, "http.send"},
		"names":           {head + `x if net.lookup_ip_addr("a")`, "net.lookup_ip_addr"},
		"clock":           {head + `x if time.now_ns() > 0`, "time.now_ns"},
		"chance":          {head + `x if rand.intn("a", 2) == 1`, "rand.intn"},
		"environment":     {head + `x if opa.runtime().env`, "opa.runtime"},
		"unknown":         {head + `x if nothing(1)`, "undefined function"},
		"fails open":      {head + `default AllowRequestsFailingPolicy := true`, "set it to false"},
		"fails open, odd": {head + `AllowRequestsFailingPolicy := "yes"`, "set it to false"},
		"recursion":       {head + `a := b { true }` + "\n" + `b := a { true }`, "recursive"},
		"too long":        {head + "#" + strings.Repeat("x", MaxText), "more than"},
		"too deep":        {head + "x := " + brackets("[") + brackets("]"), "within each other"},
	} {
		if p, err := Compile(t.Context(), tc.text); err == nil || p != nil || !strings.Contains(err.Error(), tc.want) {
			t.Errorf("%s: %v, want %q", name, err, tc.want)
		}
	}
	for name, text := range map[string]string{
		"fails closed": head + "default AllowRequestsFailingPolicy := false",
		"v0":           "package agent_policy\nx { true }",
		"v1":           "package agent_policy\nx if { true }\ny contains 1",
		"rego.v1":      "package agent_policy\nimport rego.v1\nx if { true }",
		"flat":         head + "x := \"" + brackets("[") + "\" # " + brackets("[") + "\ny := `" + brackets("{") + "`",
	} {
		if _, err := Compile(t.Context(), text); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// TestStateChangesAfterSuccess: what was allowed and not handled has not happened.
func TestStateChangesAfterSuccess(t *testing.T) {
	p := compile(t, `default CreateSandboxRequest := false
CreateSandboxRequest := {"allowed": true, "ops": [{"op": "add", "path": "/pstate/box", "value": input.sandbox_id}]} if {
	not data.pstate.box
}
StartContainerRequest if data.pstate.box == "s1"
`)
	make1 := &pb.CreateSandboxRequest{SandboxId: "s1"}
	ask := func(m proto.Message) Decision {
		t.Helper()
		d, _ := p.Ask(t.Context(), m)
		return d
	}
	first := ask(make1)
	if second := ask(make1); !first.Allowed || !second.Allowed {
		t.Fatal("a sandbox is not allowed twice though none was made")
	}
	if ask(&pb.StartContainerRequest{}).Allowed {
		t.Error("the state has changed before success")
	}
	if err := p.Commit(t.Context(), first); err != nil {
		t.Fatal(err)
	}
	if !ask(&pb.StartContainerRequest{}).Allowed {
		t.Error("the state has not changed")
	}
	if ask(make1).Allowed {
		t.Error("a second sandbox is allowed")
	}
	if err := p.Commit(t.Context(), Decision{}); err != nil {
		t.Error(err)
	}
}

// TestDataAreCutOff: rules may ask for members that the data do not have, and the data may be Rego after all.
func TestDataAreCutOff(t *testing.T) {
	const rules = "default StartContainerRequest := false\n" +
		"StartContainerRequest if policy_data.absent.member\n" +
		"StartContainerRequest if policy_data.ids[_] == input.container_id\n"
	for name, tc := range map[string]struct {
		data    string
		compile bool
	}{
		"JSON":          {`policy_data := {"ids": ["c1"]}`, true},
		"two lines":     {"policy_data := {\n  \"ids\": [\n\"c1\"]\n}\n\n", true},
		"equals":        {`policy_data = {"ids": ["c1"]}`, true},
		"more behind":   {`policy_data := {"ids": ["c1"]}` + "\nx := 1", false},
		"no JSON":       {`policy_data := {"ids": ["c1",]}`, false},
		"comment":       {`policy_data := {"ids": ["c1"]} # data`, false},
		"complete Rego": {`policy_data := {"ids": ["c1",], "absent": {"member": false}}`, true},
	} {
		p, err := Compile(t.Context(), head+rules+tc.data)
		if (err == nil) != tc.compile {
			t.Errorf("%s: %v", name, err)
			continue
		}
		if err != nil {
			if !strings.Contains(err.Error(), "rego_type_error") {
				t.Errorf("%s: %v, want a type error", name, err)
			}
			continue
		}
		for id, want := range map[string]bool{"c1": true, "c2": false} {
			if d, err := p.Ask(t.Context(), &pb.StartContainerRequest{ContainerId: id}); err != nil || d.Allowed != want {
				t.Errorf("%s: %s: %v, %v", name, id, d.Allowed, err)
			}
		}
	}
}

func TestInputIsKatas(t *testing.T) {
	m := &pb.CreateContainerRequest{
		ContainerId: "c", PidContainer: "p", OCI: &pb.Spec{
			Mounts:      []*pb.Mount{{Destination: "/d", Type: "bind", Options: []string{"ro"}}},
			Annotations: map[string]string{"a": "b"},
			Linux: &pb.Linux{Seccomp: &pb.LinuxSeccomp{Syscalls: []*pb.LinuxSyscall{
				{Names: []string{"n"}, ErrnoRet: &pb.LinuxSyscall_Errnoret{Errnoret: 7}}, {},
			}}},
		},
	}
	name, got, err := Input(m)
	if err != nil || name != "CreateContainerRequest" {
		t.Fatal(name, err)
	}
	oci := got["OCI"].(map[string]any)
	calls := oci["Linux"].(map[string]any)["Seccomp"].(map[string]any)["Syscalls"].([]any)
	mount := map[string]any{"destination": "/d", "source": "", "type_": "bind", "options": []any{"ro"}}
	for what, pair := range map[string][2]any{
		"mount":       {oci["Mounts"].([]any)[0], mount},
		"annotations": {oci["Annotations"], map[string]any{"a": "b"}},
		"no message":  {oci["Process"], nil},
		"oneof":       {calls[0].(map[string]any)["ErrnoRet"], map[string]any{"Errnoret": uint64(7)}},
		"no oneof":    {calls[1].(map[string]any)["ErrnoRet"], nil},
		"empty list":  {got["storages"], []any{}},
		"default":     {got["exec_id"], ""},
		"ours":        {got["pid_container"], "p"},
	} {
		if d := cmp.Diff(pair[1], pair[0]); d != "" {
			t.Errorf("%s (-want +got):\n%s", what, d)
		}
	}
	if _, there := oci["Linux"].(map[string]any)["Seccomp"].(map[string]any)["DefaultErrnoRet"]; there {
		t.Error("a field of ours without a value is shown")
	}
	_, got, err = Input(&pb.WriteStreamRequest{Data: []byte{0, 255}})
	want := map[string]any{"container_id": "", "exec_id": "", "data": []any{int64(0), int64(255)}}
	if d := cmp.Diff(want, got); err != nil || d != "" {
		t.Errorf("bytes: %v (-want +got):\n%s", err, d)
	}
	if _, _, err := Input(&pb.WriteStreamRequest{Data: make([]byte, maxBytes+1)}); err == nil {
		t.Error("many bytes are shown")
	}
}

func TestCopiedFilesAreDescribed(t *testing.T) {
	for name, tc := range map[string]struct {
		in   *pb.CopyFileRequest
		want map[string]any // nil: refused
	}{
		"file": {
			&pb.CopyFileRequest{Path: "/a", FileMode: 0o100644, FileSize: 3, Data: []byte("abc")},
			map[string]any{"path": "/a", "file_type": "Regular", "symlink_target": nil, "file_size": int64(3)},
		},
		"link": {
			&pb.CopyFileRequest{Path: "/a", FileMode: 0o120777, Data: []byte("to")},
			map[string]any{"file_type": "Symlink", "symlink_target": "to"},
		},
		"fifo":  {&pb.CopyFileRequest{Path: "/a", FileMode: 0o010644}, map[string]any{"file_type": "Unknown"}},
		"raw":   {&pb.CopyFileRequest{Path: "/a", RawPath: []byte("/b")}, map[string]any{"path": "/b"}},
		"gone":  {&pb.CopyFileRequest{Path: "/a", Remove: true}, map[string]any{"remove": true}},
		"raw8":  {&pb.CopyFileRequest{RawPath: []byte("/\xff")}, nil},
		"link8": {&pb.CopyFileRequest{Path: "/a", FileMode: 0o120777, Data: []byte("\xff")}, nil},
	} {
		_, got, err := Input(tc.in)
		if (err == nil) != (tc.want != nil) {
			t.Errorf("%s: %v", name, err)
		}
		for k, v := range tc.want {
			if d := cmp.Diff(v, got[k]); d != "" {
				t.Errorf("%s: %s (-want +got):\n%s", name, k, d)
			}
		}
		if _, there := got["data"]; there {
			t.Errorf("%s: the content is shown", name)
		}
	}
}

// TestEvaluationIsBounded: a rule that would not end is ended, and denies.
func TestEvaluationIsBounded(t *testing.T) {
	p := compile(t, "StartContainerRequest if count([1 | some i in n; some j in n; i == -j]) == 0\n"+
		"n := numbers.range(1, 100000)")
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	d, err := p.Ask(ctx, &pb.StartContainerRequest{})
	if err == nil || d.Allowed || !strings.Contains(err.Error(), "too long") {
		t.Errorf("%v, %v", d, err)
	}
}

// TestTheEndOfWhatIsPrintedIsKept: rules of Kata print much, and the last lines tell why.
func TestTheEndOfWhatIsPrintedIsKept(t *testing.T) {
	p := compile(t, `default StartContainerRequest := false
StartContainerRequest if {
	count([1 | some i in numbers.range(1, 2000); print("line", i)]) == 0
}
StartContainerRequest if { print("the end"); false }`)
	d, err := p.Ask(t.Context(), &pb.StartContainerRequest{})
	if err != nil || !strings.HasSuffix(d.Reason, "line 1999 line 2000 the end") || len(d.Reason) > maxReason ||
		!strings.HasPrefix(d.Reason, "StartContainerRequest is blocked by policy: …") {
		t.Errorf("%v: %q", err, d.Reason)
	}
}

func FuzzCompile(f *testing.F) {
	f.Add(head + "default StartContainerRequest := false\npolicy_data := {\"a\": [1]}\n")
	f.Add("package agent_policy\nx contains y if { some y in input.a }")
	f.Add("package agent_policy\nStartContainerRequest { print(input) }")
	f.Fuzz(func(t *testing.T, text string) {
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		p, err := Compile(ctx, text)
		if err != nil {
			return
		}
		d, err := p.Ask(ctx, &pb.StartContainerRequest{ContainerId: "c"})
		if err == nil {
			_ = p.Commit(ctx, d)
		}
	})
}
