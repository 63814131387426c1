// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package tpm_test

import (
	"bytes"
	"crypto"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"testing"

	"github.com/google/go-tpm/tpm2"
	"golang.org/x/sys/unix"

	"github.com/coco-shim/coco/attestation"
	"github.com/coco-shim/coco/attestation/tpm"
	"github.com/coco-shim/coco/attestation/tpm/tpmtest"
)

// swtpm is a TPM in software, at the other end of a socket.
type swtpm struct{ net.Conn }

// Send sends one command and returns the response. A TPM that first tests an algorithm asks for the command again.
func (s swtpm) Send(command []byte) ([]byte, error) {
	const retry = 0x922 // TPM_RC_RETRY
	for range 1000 {
		response, err := s.exchange(command)
		if err != nil || binary.BigEndian.Uint32(response[6:]) != retry {
			return response, err
		}
	}
	return nil, errors.New("the TPM asks for the command again and again")
}

func (s swtpm) exchange(command []byte) ([]byte, error) {
	if _, err := s.Write(command); err != nil {
		return nil, err
	}
	head := make([]byte, 10)
	if _, err := io.ReadFull(s, head); err != nil {
		return nil, err
	}
	size := binary.BigEndian.Uint32(head[2:])
	if size < 10 || size > 64<<10 {
		return nil, fmt.Errorf("a response of %d bytes", size)
	}
	rest := make([]byte, size-10)
	_, err := io.ReadFull(s, rest)
	return append(head, rest...), err
}

// newSWTPM starts a TPM that ends with the test.
func newSWTPM(t *testing.T) swtpm {
	t.Helper()
	program, err := exec.LookPath("swtpm")
	if err != nil {
		t.Skip("no swtpm on this machine (Debian package swtpm)")
	}
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	ours, theirs := os.NewFile(uintptr(pair[0]), "ours"), os.NewFile(uintptr(pair[1]), "theirs")
	defer ours.Close()
	defer theirs.Close()
	conn, err := net.FileConn(ours)
	if err != nil {
		t.Fatal(err)
	}
	var log bytes.Buffer
	cmd := exec.CommandContext(t.Context(), program, "socket", "--tpm2", "--fd", "3", "--tpmstate", "dir="+t.TempDir(),
		"--flags", "not-need-init,startup-clear")
	cmd.ExtraFiles, cmd.Stdout, cmd.Stderr = []*os.File{theirs}, &log, &log
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		conn.Close()
		if err := cmd.Wait(); t.Failed() {
			t.Logf("swtpm: %v: %s", err, log.String())
		}
	})
	return swtpm{conn}
}

var akFlags = tpm2.TPMAObject{
	FixedTPM: true, FixedParent: true, SensitiveDataOrigin: true, UserWithAuth: true, Restricted: true, SignEncrypt: true,
}

func rsaTemplate(scheme tpm2.TPMAlgID, flags tpm2.TPMAObject) tpm2.TPMTPublic {
	s := tpm2.TPMTRSAScheme{Scheme: scheme}
	switch scheme {
	case tpm2.TPMAlgRSASSA:
		s.Details = tpm2.NewTPMUAsymScheme(scheme, &tpm2.TPMSSigSchemeRSASSA{HashAlg: tpm2.TPMAlgSHA256})
	case tpm2.TPMAlgRSAPSS:
		s.Details = tpm2.NewTPMUAsymScheme(scheme, &tpm2.TPMSSigSchemeRSAPSS{HashAlg: tpm2.TPMAlgSHA256})
	}
	return tpm2.TPMTPublic{
		Type: tpm2.TPMAlgRSA, NameAlg: tpm2.TPMAlgSHA256, ObjectAttributes: flags,
		Parameters: tpm2.NewTPMUPublicParms(tpm2.TPMAlgRSA, &tpm2.TPMSRSAParms{Scheme: s, KeyBits: 2048}),
	}
}

func eccTemplate(flags tpm2.TPMAObject) tpm2.TPMTPublic {
	return tpm2.TPMTPublic{
		Type: tpm2.TPMAlgECC, NameAlg: tpm2.TPMAlgSHA256, ObjectAttributes: flags,
		Parameters: tpm2.NewTPMUPublicParms(tpm2.TPMAlgECC, &tpm2.TPMSECCParms{
			CurveID: tpm2.TPMECCNistP256, Scheme: tpm2.TPMTECCScheme{
				Scheme:  tpm2.TPMAlgECDSA,
				Details: tpm2.NewTPMUAsymScheme(tpm2.TPMAlgECDSA, &tpm2.TPMSSigSchemeECDSA{HashAlg: tpm2.TPMAlgSHA256}),
			},
		}),
	}
}

// swtpmQuote makes a key and has it quote PCRs of the SHA-256 bank.
func swtpmQuote(t *testing.T, s swtpm, template tpm2.TPMTPublic, pcrs ...uint) (attestation.Evidence, tpm2.TPM2BName) {
	t.Helper()
	made, err := tpm2.CreatePrimary{PrimaryHandle: tpm2.TPMRHEndorsement, InPublic: tpm2.New2B(template)}.Execute(s)
	if err != nil {
		t.Fatal(err)
	}
	sel := tpm2.TPMLPCRSelection{PCRSelections: []tpm2.TPMSPCRSelection{{
		Hash:      tpm2.TPMAlgSHA256,
		PCRSelect: tpm2.PCClientCompatible.PCRs(pcrs...),
	}}}
	quoted, err := tpm2.Quote{
		SignHandle:     tpm2.AuthHandle{Handle: made.ObjectHandle, Name: made.Name, Auth: tpm2.PasswordAuth(nil)},
		QualifyingData: tpm2.TPM2BData{Buffer: nonce}, InScheme: tpm2.TPMTSigScheme{
			Scheme: tpm2.TPMAlgNull,
		}, PCRSelect: sel,
	}.Execute(s)
	if err != nil {
		t.Fatal(err)
	}
	e := attestation.Evidence{
		Type: attestation.TPM, Report: quoted.Quoted.Bytes(), Signature: tpm2.Marshal(quoted.Signature),
		Key: tpm2.Marshal(made.OutPublic), PCRs: map[int][]byte{},
	}
	for _, n := range pcrs {
		one := tpm2.TPMLPCRSelection{PCRSelections: []tpm2.TPMSPCRSelection{{
			Hash:      tpm2.TPMAlgSHA256,
			PCRSelect: tpm2.PCClientCompatible.PCRs(n),
		}}}
		read, err := tpm2.PCRRead{PCRSelectionIn: one}.Execute(s)
		if err != nil {
			t.Fatal(err)
		}
		e.PCRs[int(n)] = read.PCRValues.Digests[0].Buffer
	}
	if _, err := (tpm2.FlushContext{FlushHandle: made.ObjectHandle}).Execute(s); err != nil {
		t.Fatal(err)
	}
	return e, made.Name
}

// A TPM that is not ours makes key, quote and signature.
func TestQuotesOfSWTPM(t *testing.T) {
	s := newSWTPM(t)
	extended := bytes.Repeat([]byte{7}, 32)
	if _, err := (tpm2.PCRExtend{
		PCRHandle: tpm2.AuthHandle{Handle: tpm2.TPMHandle(8), Auth: tpm2.PasswordAuth(nil)},
		Digests:   tpm2.TPMLDigestValues{Digests: []tpm2.TPMTHA{{HashAlg: tpm2.TPMAlgSHA256, Digest: extended}}},
	}).Execute(s); err != nil {
		t.Fatal(err)
	}
	for name, template := range map[string]tpm2.TPMTPublic{
		"RSASSA": rsaTemplate(tpm2.TPMAlgRSASSA, akFlags), "RSAPSS": rsaTemplate(tpm2.TPMAlgRSAPSS, akFlags),
		"ECDSA": eccTemplate(akFlags),
	} {
		e, keyName := swtpmQuote(t, s, template, 0, 4, 8, 17, 23)
		want := expectations()
		want.Selection = &tpm.Selection{Bank: crypto.SHA256, PCRs: []int{0, 4, 8, 17, 23}}
		want.KeyNames, want.InitData = [][]byte{keyName.Buffer}, extended
		want.Registers = map[string][][]byte{"pcr17": {bytes.Repeat([]byte{0xff}, 32)}, "pcr23": {make([]byte, 32)}}
		collateral := attestation.Collateral{Now: tpmtest.Now}
		if _, err := tpm.Verify(e, collateral, want); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		other := want
		other.Selection = &tpm.Selection{Bank: crypto.SHA256, PCRs: []int{0, 4, 8, 17}}
		_, err := tpm.Verify(e, collateral, other)
		refused(t, err, attestation.CodePCRSelection, "quote.pcr_select")
		e.PCRs[0] = extended
		_, err = tpm.Verify(e, collateral, want)
		refused(t, err, attestation.CodePCRDigest, "quote.pcr_digest")
	}
	free := akFlags
	free.Restricted = false
	e, _ := swtpmQuote(t, s, eccTemplate(free), 0)
	want := expectations()
	want.Selection.PCRs = []int{0}
	_, err := tpm.Verify(e, attestation.Collateral{Now: tpmtest.Now}, want)
	refused(t, err, attestation.CodeKeyAttributes, "key.attributes")
}
