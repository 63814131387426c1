// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package copies

import (
	"crypto/ed25519"
	"crypto/rand"
	"crypto/x509"
	"encoding/base64"
	"testing"

	pb "github.com/coco-shim/coco/api/agent"
	"github.com/coco-shim/coco/policy"
	"github.com/coco-shim/coco/policy/signed"
)

// signing has the rule signed for the volume.
type signing struct {
	*guest
	key ed25519.PrivateKey
}

func newSigning(t *testing.T) signing {
	t.Helper()
	pub, key, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.MarshalPKIXPublicKey(pub)
	if err != nil {
		t.Fatal(err)
	}
	return signing{newGuest(t, exact(), &policy.Content{
		Rule: policy.ContentSigned, Keys: []string{base64.StdEncoding.EncodeToString(der)}, Counter: 5,
	}), key}
}

// signature is one of files with the owner's text.
func (s signing) signature(at, name string, counter uint64, files ...string) *pb.CopyFileRequest {
	s.Helper()
	st := signed.Statement{Name: name, Counter: counter, Files: map[string]string{}}
	for _, f := range files {
		st.Files[f] = digest(text)
	}
	b, err := st.Sign(s.key)
	if err != nil {
		s.Fatal(err)
	}
	return file(volume+"/"+at+signed.FileName, string(b))
}

const sigFile = `file ".coco.sig": expected `

// TestSignedFilesInOneState: a tree without kubelet's directories.
func TestSignedFilesInOneState(t *testing.T) {
	s := newSigning(t)
	s.want("files", s.send(s.signature("", "v", 5, "a", "d/b"), file(volume+"/a", text), file(volume+"/d/b", text)), "")
	s.want("create", s.create(), "")
	s.want("other content", s.send(file(volume+"/a", "x")),
		`file "a": expected one that the owner has signed, got other content of 1 bytes`)
	s.want("another file", s.send(file(volume+"/c", text)), `file "c": expected one that the owner has signed`)
	s.want("other files under the same counter", s.send(s.signature("", "v", 5, "a")),
		sigFile+"a higher counter for other files, got 5")
	s.want("the same once more", s.send(s.signature("", "v", 5, "a", "d/b")), "")
	s.want("a lower counter", s.send(s.signature("", "v", 4, "a")), sigFile+"a counter of at least 5, got 4")
	s.want("another volume's", s.send(s.signature("", "w", 6, "a")), sigFile+`a signature for "v", got one for "w"`)
	s.want("more files", s.send(s.signature("", "v", 7, "a", "c"), file(volume+"/c", text)), "")
	s.want("back", s.send(s.signature("", "v", 6, "a")), sigFile+"a counter of at least 7, got 6")
	bad := s.signature("", "v", 8, "a")
	bad.Data = append([]byte("x"), bad.Data[1:]...)
	s.want("a broken one", s.send(bad), sigFile+"a signature by a key of the policy, got it is signed by none")
	s.want("a link", s.send(link(volume+"/a", "b")), `link "a": expected no link but kubelet's, got one to "b"`)
}

// TestSignedFilesBeforeAContainer: what is missing or wrong when a container is made with the volume.
func TestSignedFilesBeforeAContainer(t *testing.T) {
	s := newSigning(t)
	sig, one, two := s.signature("", "v", 5, "a"), s.signature("..1/", "v", 5, "a"), s.signature("..2/", "v", 6, "a")
	data := link(volume+"/..data", "..1")
	none := sigFile + "it before the files that it is about, got none in "
	for _, tc := range []struct {
		what string
		list []*pb.CopyFileRequest
		want string
	}{
		{"nothing", nil, "web/" + none + `"./"`},
		{"no signature", []*pb.CopyFileRequest{file(volume+"/a", text)}, "web/" + none + `"./"`},
		{"no file", []*pb.CopyFileRequest{sig}, `web/file "a": expected the file that the owner has signed, got none`},
		{"both", []*pb.CopyFileRequest{sig, file(volume+"/a", text)}, ""},
		{
			"one more",
			[]*pb.CopyFileRequest{sig, file(volume+"/a", text), file(volume+"/b", text)},
			`web/file "b": expected one that the owner has signed`,
		},
		{"a state", []*pb.CopyFileRequest{one, file(volume+"/..1/a", text), data}, ""},
		{
			"a state with its links",
			[]*pb.CopyFileRequest{
				one, file(volume+"/..1/a", text), data, link(volume+"/a", "..data/a"),
				link(volume+"/"+signed.FileName, "..data/"+signed.FileName),
			},
			"",
		},
		{
			"a link to no file of it",
			[]*pb.CopyFileRequest{one, file(volume+"/..1/a", text), data, link(volume+"/b", "..data/b")},
			`web/link "b": expected no link but kubelet's`,
		},
		{
			"a link that ends early",
			[]*pb.CopyFileRequest{one, file(volume+"/..1/a", text), data, link(volume+"/a", "..data/x")},
			`web/link "a": expected no link but kubelet's`,
		},
		{"a state that does not count", []*pb.CopyFileRequest{one, file(volume+"/..1/a", text)}, "web/" + none + `"./"`},
		{
			"a state without a signature beside it",
			[]*pb.CopyFileRequest{one, file(volume+"/..1/a", text), data, file(volume+"/..2/a", text)},
			"web/" + none + `"./..2"`,
		},
		{
			"two states", []*pb.CopyFileRequest{
				one, file(volume+"/..1/a", text), two, file(volume+"/..2/a", text), link(volume+"/..data", "..2"),
			}, `web/file "..1/.coco.sig": expected a counter of at least 6, got 5`,
		},
		{
			"data without a state",
			[]*pb.CopyFileRequest{one, file(volume+"/..1/a", text), link(volume+"/..data", "..9")},
			"web/" + none + `"./..9"`,
		},
		{
			"data out of the volume",
			[]*pb.CopyFileRequest{sig, file(volume+"/a", text), link(volume+"/..data", "/etc")},
			"web/" + none + `".//etc"`,
		},
		{
			"a file below data",
			[]*pb.CopyFileRequest{sig, file(volume+"/a", text), file(volume+"/..data/a", text)},
			`web/file "..data/a": expected one that the owner has signed`,
		},
	} {
		g := signing{newSigning(t).guest, s.key}
		g.policy.Volumes[1].Content.Keys = s.policy.Volumes[1].Content.Keys
		g.want(tc.what, g.send(tc.list...), "")
		g.want(tc.what, g.create(), tc.want)
	}
}

// TestStatesOfSignedFiles: kubelet brings a new state beside the old one, turns the link and removes the old one.
func TestStatesOfSignedFiles(t *testing.T) {
	s := newSigning(t)
	s.want("files", s.send(s.signature("..1/", "v", 5, "a", "d/b"), file(volume+"/..1/a", text),
		file(volume+"/..1/d/b", text),
		link(volume+"/..data", "..1"), link(volume+"/a", "..data/a")), "")
	s.want("create", s.create(), "")
	other := s.web
	other.ID = "other"
	if d := s.Admit(other); d != nil {
		t.Errorf("another container with the volume: %v", d)
	}
	s.Own(other)
	s.want("a file before its signature", s.send(file(volume+"/..2/a", text)),
		sigFile+`it before the files that it is about, got none in "./..2"`)
	s.want("a state", s.send(s.signature("..2/", "v", 6, "c"), file(volume+"/..2/c", text)), "")
	s.want("an incomplete state", s.send(s.signature("..3/", "v", 7, "c"), link(volume+"/..data", "..3")),
		`file "c": expected the file that the owner has signed, got none`)
	s.want("a state that is not there", s.send(link(volume+"/..data", "..4")),
		sigFile+`it before the files that it is about, got none in "./..4"`)
	s.want("data elsewhere", s.send(link(volume+"/..data", "/etc")), `link "..data": expected no link but kubelet's`)
	s.want("a link to a file of a later state", s.send(link(volume+"/c", "..data/c")), "")
	s.want("a directory", s.send(link(volume+"/d", "..data/d")), "")
	s.want("half of a directory's name", s.send(link(volume+"/dd", "..data/dd")),
		`link "dd": expected no link but kubelet's`)
	s.want("the new state", s.send(link(volume+"/..data", "..2")), "")
	s.want("back to the old one", s.send(link(volume+"/..data", "..1")),
		`link "..data": expected a state with a counter of at least 6, got 5`)
	s.want("the old one goes", s.send(gone(volume+"/..1")), "")
	s.want("a file of the old one", s.send(file(volume+"/..1/a", text)),
		sigFile+`it before the files that it is about, got none in "./..1"`)
	s.want("an old signature", s.send(s.signature("..1/", "v", 5, "a")),
		`file "..1/.coco.sig": expected a counter of at least 6`)
}

// TestSignaturesAreBounded: a signature's file that is too long is not kept.
func TestSignaturesAreBounded(t *testing.T) {
	s := newSigning(t)
	s.want("create", s.create(), "web/"+sigFile)
	long := file(volume+"/"+signed.FileName, string(make([]byte, signed.MaxSize)))
	if whole, d := s.add(long.Path, long); d != nil || len(whole.text) != signed.MaxSize {
		t.Errorf("at the bound: %v", d)
	}
	long.Data, long.FileSize = append(long.Data, 0), long.FileSize+1
	if whole, d := s.add(long.Path, long); d != nil || whole.text != nil {
		t.Errorf("above it: %d bytes kept, %v", len(whole.text), d)
	}
	other := file(volume+"/other", text)
	if whole, d := s.add(other.Path, other); d != nil || whole.text != nil {
		t.Errorf("another file: %d bytes kept, %v", len(whole.text), d)
	}
}

// TestACounterOfZero: where the policy has no lowest counter, the first signature may have none.
func TestACounterOfZero(t *testing.T) {
	s := newSigning(t)
	s.policy.Volumes[1].Content.Counter = 0
	s.want("files", s.send(s.signature("", "v", 0, "a"), file(volume+"/a", text)), "")
	s.want("create", s.create(), "")
	for name, want := range map[string][2]string{
		"a": {"", "a"}, "..1": {"", "..1"}, "..1/a": {"..1", "a"}, "..data/a": {"", "..data/a"}, "d/a": {"", "d/a"},
	} {
		if state, rest := stateOf(name); state != want[0] || rest != want[1] {
			t.Errorf("stateOf(%s) = %q, %q", name, state, rest)
		}
	}
}
