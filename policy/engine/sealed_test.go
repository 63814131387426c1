// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package engine

import (
	"slices"
	"strings"
	"testing"

	"google.golang.org/protobuf/proto"

	pb "github.com/coco-shim/coco/api/agent"
	"github.com/coco-shim/coco/api/contract"
	"github.com/coco-shim/coco/plan/request"
	"github.com/coco-shim/coco/policy"
	"github.com/coco-shim/coco/policy/compare"
)

// sealedText has the form of a sealed text.
const sealedText = "sealed.eyJhbGciOiJFUzI1NiJ9.eyJ0eXBlIjoidmF1bHQifQ.AAAA"

// sealedPod is a pod with one container, a sealed variable PASSWORD, a variable ANY of any text, and a sealed file
// /etc/hosts/password.
func sealedPod(t *testing.T) *pod {
	t.Helper()
	p := one(t)
	c := &p.policy.Containers[0]
	if c.Mounts[2].Destination != "/etc/hosts" || c.Mounts[2].Source.Copy == nil {
		t.Fatalf("the container's third mount is %+v", c.Mounts[2])
	}
	c.Process.Env = append(c.Process.Env, policy.Env{Name: "PASSWORD", Value: policy.Value{Type: policy.TypeSealed}},
		policy.Env{Name: "ANY", Value: policy.Value{Type: policy.TypeAny}})
	c.Mounts[2].Source.Copy = &policy.Content{Rule: policy.ContentUnpinned}
	const uri = "kbs:///default/db/password"
	c.Secrets = []policy.Secret{
		{Resource: uri, Env: "PASSWORD", Sealed: true}, {Resource: uri, File: "/etc/hosts/password", Sealed: true},
	}
	p.policy.Pod.Sealed.Signers = []policy.Signer{{Kid: "kbs:///default/sealed/signer"}}
	for _, proc := range []*pb.Process{p.creates[0].OCI.Process, p.execs[0].Process} {
		proc.Env = append(proc.Env, "PASSWORD="+sealedText, "ANY=x")
	}
	if err := p.policy.Validate(); err != nil {
		t.Fatal(err)
	}
	return p
}

// setEnv replaces a variable, or takes it away.
func setEnv(p *pb.Process, name, value string) {
	p.Env = slices.DeleteFunc(p.Env, func(v string) bool { return strings.HasPrefix(v, name+"=") })
	if value != "" {
		p.Env = append(p.Env, name+"="+value)
	}
}

// TestSealedTextsOfVariables: a sealed text is admitted where the policy opens it, with a container's first process.
func TestSealedTextsOfVariables(t *testing.T) {
	p := sealedPod(t)
	for name, tc := range map[string]struct{ variable, value, want string }{
		"the text":                       {"PASSWORD", sealedText, ""},
		"another text":                   {"PASSWORD", sealedText + "A", ""},
		"plain text":                     {"PASSWORD", "canary", "a text of type sealed, got another text of 6 bytes"},
		"none":                           {"PASSWORD", "", "expected a text of type sealed, got none"},
		"the text in a variable of any":  {"ANY", sealedText, "expected no sealed text"},
		"the text in a further variable": {"MORE", sealedText, "expected none, got a text of"},
	} {
		m, x := proto.CloneOf(p.creates[0]), proto.CloneOf(p.execs[0])
		setEnv(m.OCI.Process, tc.variable, tc.value)
		setEnv(x.Process, tc.variable, tc.value)
		err := call(p.until(t, 0, false), "CreateContainer", m)
		if tc.want == "" && err != nil || tc.want != "" && (err == nil || !strings.Contains(err.Error(), tc.want)) {
			t.Errorf("%s: %v, want %q", name, err, tc.want)
		}
		if err != nil && (strings.Contains(err.Error(), sealedText) || strings.Contains(err.Error(), "canary")) {
			t.Errorf("%s: the denial has the text: %v", name, err)
		}
		err = call(p.until(t, 0, true), "ExecProcess", x)
		if allowed := tc.want == "" || name == "none"; allowed != (err == nil) {
			t.Errorf("%s, exec: %v", name, err)
		}
		if err == nil && slices.ContainsFunc(x.Process.Env, func(v string) bool {
			return strings.HasPrefix(v, "PASSWORD=")
		}) {
			t.Errorf("%s: an exec gets %q", name, x.Process.Env)
		}
	}
	m := proto.CloneOf(p.creates[0])
	if err := call(p.until(t, 0, false), "CreateContainer", m); err != nil ||
		!slices.Contains(m.OCI.Process.Env, "PASSWORD="+sealedText) {
		t.Errorf("the first process gets %q, %v", m.OCI.Process.Env, err)
	}
}

// TestSealedTextsOfFiles: files with sealed texts are in a container only where its policy opens them, also after an
// update.
func TestSealedTextsOfFiles(t *testing.T) {
	p := sealedPod(t)
	m := p.creates[0]
	at := request.GuestCopy(m.GetContainerId(), "/etc/hosts")
	begin := func(files ...*pb.CopyFileRequest) (*Engine, error) {
		e := p.until(t, 0, false)
		for _, f := range files {
			if err := call(e, "CopyFile", f); err != nil {
				t.Fatal(err)
			}
		}
		return e, call(e, "CreateContainer", m)
	}
	const stray = `file "/etc/hosts/other": expected no sealed text`
	large := file(at+"/..2026/other", sealedText)
	large.FileSize += 5 // the rest follows
	for name, tc := range map[string]struct {
		files []*pb.CopyFileRequest
		want  string
	}{
		"the file":           {[]*pb.CopyFileRequest{file(at+"/..2026/password", sealedText)}, ""},
		"with a line's end":  {[]*pb.CopyFileRequest{file(at+"/..2026/password", sealedText+"\n")}, ""},
		"plain other files":  {[]*pb.CopyFileRequest{file(at+"/..2026/other", "sealed.")}, ""},
		"another file":       {[]*pb.CopyFileRequest{file(at+"/..2026/other", sealedText)}, stray},
		"another file, more": {[]*pb.CopyFileRequest{file(at+"/..2026/other", sealedText+"\n")}, stray},
		"a file in parts":    {[]*pb.CopyFileRequest{large}, stray},
		"another file that was replaced": {[]*pb.CopyFileRequest{
			file(at+"/..2026/other", sealedText), file(at+"/..2026/other", "plain"),
		}, ""},
		"another file that was removed": {[]*pb.CopyFileRequest{
			file(at+"/..2026/other", sealedText), {Path: at + "/..2026", Remove: true},
		}, ""},
		"a file of no mount": {[]*pb.CopyFileRequest{
			file(request.GuestCopy("other", "/etc/hosts")+"/password", sealedText),
		}, ""},
	} {
		_, err := begin(tc.files...)
		if tc.want == "" && err != nil || tc.want != "" && (code(err) != compare.Content ||
			!strings.Contains(err.Error(), tc.want)) {
			t.Errorf("%s: %v, want %q", name, err, tc.want)
		}
	}
	e, err := begin(file(at+"/..2026/password", sealedText))
	if err != nil {
		t.Fatal(err)
	}
	for name, tc := range map[string]struct {
		file *pb.CopyFileRequest
		want compare.Code
	}{
		"a new text":              {file(at+"/..2027/password", sealedText+"A"), ""},
		"a text in another file":  {file(at+"/..2027/other", sealedText), compare.Content},
		"plain text in that file": {file(at+"/..2027/other", "plain"), ""},
	} {
		if err := call(e, "CopyFile", tc.file); code(err) != tc.want || (err == nil) != (tc.want == "") {
			t.Errorf("later, %s: %v", name, err)
		}
	}
}

// TestSealedTextsInContainersForDebugging: one that shares a volume does not keep back the updates of it.
func TestSealedTextsInContainersForDebugging(t *testing.T) {
	p := sealedPod(t)
	p.policy.Pod.Debug = true
	p.policy.Volumes = append(p.policy.Volumes, policy.Volume{
		Name: "keys", Kind: policy.VolumeCopy, Content: &policy.Content{Rule: policy.ContentUnpinned},
	})
	c := &p.policy.Containers[0]
	c.Mounts[2].Source = policy.Source{Volume: &policy.Use{Name: "keys"}}
	if err := p.policy.Validate(); err != nil {
		t.Fatal(err)
	}
	const at = contract.FilesDir + "/" + compare.CopyPrefix + "keys"
	p.creates[0].OCI.Mounts[2].Source = at
	m := again(t, p.creates[0], "debug")
	m.OCI.Annotations[contract.CRIContainerName] = "looks"
	m.OCI.Linux.Devices, m.OCI.Linux.Resources.Devices = nil, m.OCI.Linux.Resources.Devices[:1]
	m.OCI.Linux.RootfsPropagation, m.Devices = "", nil
	e := p.until(t, 0, true)
	if err := call(e, "CreateContainer", m); err != nil {
		t.Fatal(err)
	}
	if err := call(e, "CopyFile", file(at+"/..2027/password", sealedText)); err != nil {
		t.Errorf("an update of a file that the policy names: %v", err)
	}
	if err := call(e, "CopyFile", file(at+"/..2027/other", sealedText)); code(err) != compare.Content {
		t.Errorf("a text in another file: %v", err)
	}
}
