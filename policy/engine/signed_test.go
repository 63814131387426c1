// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package engine

import (
	"crypto/ed25519"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/hex"
	"testing"

	pb "github.com/coco-shim/coco/api/agent"
	"github.com/coco-shim/coco/plan/request"
	"github.com/coco-shim/coco/policy"
	"github.com/coco-shim/coco/policy/compare"
	"github.com/coco-shim/coco/policy/signed"
)

// owner signs the files of a mount on /etc/hosts.
type owner struct {
	*testing.T
	key ed25519.PrivateKey
	at  string // the place of the copy
}

func (o owner) sign(name string, counter uint64, files map[string]string) string {
	o.Helper()
	s := signed.Statement{Name: name, Counter: counter, Files: map[string]string{}}
	for p, text := range files {
		sum := sha256.Sum256([]byte(text))
		s.Files[p] = hex.EncodeToString(sum[:])
	}
	text, err := s.Sign(o.key)
	if err != nil {
		o.Fatal(err)
	}
	return string(text)
}

// state is a state of a volume as the shim sends it: the signature first.
func (o owner) state(dir string, counter uint64, files map[string]string) []*pb.CopyFileRequest {
	out := []*pb.CopyFileRequest{
		{Path: o.at + "/" + dir, FileMode: directory | 0o755},
		file(o.at+"/"+dir+"/"+signed.FileName, o.sign("/etc/hosts", counter, files)),
	}
	for p, text := range files {
		out = append(out, file(o.at+"/"+dir+"/"+p, text))
	}
	return out
}

func (o owner) data(dir string) *pb.CopyFileRequest { return link(o.at+"/..data", dir) }

// volume is a whole volume.
func (o owner) volume(counter uint64, files map[string]string) []*pb.CopyFileRequest {
	out := append(o.state("..1", counter, files), o.data("..1"), link(o.at+"/"+signed.FileName, "..data/"+signed.FileName))
	for p := range files {
		out = append(out, link(o.at+"/"+p, "..data/"+p))
	}
	return out
}

// signedPod is a pod whose mount on /etc/hosts has signed content with a counter of 5 or more.
func signedPod(t *testing.T) (*pod, owner) {
	t.Helper()
	pub, key, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.MarshalPKIXPublicKey(pub)
	if err != nil {
		t.Fatal(err)
	}
	p := one(t)
	p.policy.Containers[0].Mounts[2].Source.Copy = &policy.Content{
		Rule: policy.ContentSigned, Keys: []string{base64.StdEncoding.EncodeToString(der)}, Counter: 5,
	}
	return p, owner{t, key, request.GuestCopy(p.creates[0].GetContainerId(), "/etc/hosts")}
}

func TestSignedContentAtFirst(t *testing.T) {
	p, o := signedPod(t)
	files := map[string]string{"key": "text", "sub": "more"}
	stranger := o
	if _, key, err := ed25519.GenerateKey(rand.Reader); err == nil {
		stranger.key = key
	}
	at := o.at + "/..1/"
	for _, tc := range []struct {
		what string
		list []*pb.CopyFileRequest
		ok   bool
	}{
		{"the owner's", o.volume(5, files), true},
		{"without links", append(o.state(".", 9, files)[1:1], file(o.at+"/"+signed.FileName, o.sign("/etc/hosts", 9,
			map[string]string{"key": "text"})), file(o.at+"/key", "text")), true},
		{"nothing", nil, false},
		{"no signature", append(o.volume(5, files), &pb.CopyFileRequest{Path: at + signed.FileName, Remove: true}), false},
		{"a low counter", o.volume(4, files), false},
		{"another key", stranger.volume(5, files), false},
		{"another text", append(o.volume(5, files), file(at+"key", "evil")), false},
		{"one more file", append(o.volume(5, files), file(at+"evil", "")), false},
		{"one more file beside", append(o.volume(5, files), file(o.at+"/evil", "")), false},
		{"one more state", append(o.volume(5, files), file(o.at+"/..2/key", "evil")), false},
		{"a file less", append(o.volume(5, files), &pb.CopyFileRequest{Path: at + "key", Remove: true}), false},
		{"a link out", append(o.volume(5, files), link(o.at+"/key", "/etc/shadow")), false},
		{"data elsewhere", append(o.volume(5, files), o.data("/etc")), false},
		{"another mount's", append(o.volume(5, files),
			file(at+signed.FileName, o.sign("/etc/passwd", 5, files))), false},
		{"a long signature", append(o.volume(5, files),
			file(at+signed.FileName, o.sign("/etc/hosts", 5, files)+string(make([]byte, signed.MaxSize)))), false},
	} {
		e := p.until(t, 0, false)
		for _, r := range tc.list {
			if err := call(e, "CopyFile", r); err != nil {
				t.Fatalf("%s: %v", tc.what, err)
			}
		}
		err := call(e, "CreateContainer", p.creates[0])
		if (err == nil) != tc.ok || !tc.ok && code(err) != compare.Content {
			t.Errorf("%s: %v", tc.what, err)
		}
	}
}

func TestSignedContentChanges(t *testing.T) {
	p, o := signedPod(t)
	old, fresh := map[string]string{"key": "old"}, map[string]string{"key": "new", "more": "x"}
	next := o.state("..2", 7, fresh)
	for _, tc := range []struct {
		what string
		list []*pb.CopyFileRequest
		ok   bool // the last of them
	}{
		{"a new state", append(next, o.data("..2"), link(o.at+"/more", "..data/more"),
			&pb.CopyFileRequest{Path: o.at + "/..1", Remove: true}), true},
		{"the same again", append(o.state("..2", 6, old), o.data("..2")), true},
		{"another file of the same counter", o.state("..2", 6, fresh)[:2], false},
		{"a lower counter", o.state("..2", 5, fresh)[:2], false},
		{"a file before its signature", []*pb.CopyFileRequest{file(o.at+"/..2/key", "new")}, false},
		{"another text", append(next[:2:2], file(o.at+"/..2/key", "evil")), false},
		{"not all files", append(next[:3:3], o.data("..2")), false},
		{"another text in the state that counts", []*pb.CopyFileRequest{file(o.at+"/..1/key", "evil")}, false},
		{"a link to a file of no state", []*pb.CopyFileRequest{link(o.at+"/evil", "..data/evil")}, false},
		{"back to an older state", append(append(next, o.data("..2")), o.data("..1")), false},
		{"an older state again", append(append(next, o.data("..2")), o.state("..3", 6, old)[:2]...), false},
	} {
		e := p.until(t, 0, false)
		for _, r := range o.volume(6, old) {
			if err := call(e, "CopyFile", r); err != nil {
				t.Fatalf("%s: %v", tc.what, err)
			}
		}
		if err := call(e, "CreateContainer", p.creates[0]); err != nil {
			t.Fatalf("%s: %v", tc.what, err)
		}
		for i, r := range tc.list {
			err := call(e, "CopyFile", r)
			if last := i == len(tc.list)-1; (err == nil) != (tc.ok || !last) || err != nil && code(err) != compare.Content {
				t.Errorf("%s: request %d: %v", tc.what, i, err)
			}
		}
	}
}
