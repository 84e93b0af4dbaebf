// This file answers: how does a node attest, by hand, on SPIRE's wire?
package main

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/asn1"
	"encoding/json"
	"encoding/pem"
	"errors"
	"flag"
	"fmt"
	"math/big"
	"net/url"
	"os"
	"time"

	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/spiffetls/tlsconfig"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"
	agentv1 "github.com/spiffe/spire-api-sdk/proto/spire/api/server/agent/v1"
	entryv1 "github.com/spiffe/spire-api-sdk/proto/spire/api/server/entry/v1"
	"github.com/spiffe/spire-api-sdk/proto/spire/api/types"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
)

// server is what a node knows of the server before it has attested.
type server struct {
	addr   string
	domain spiffeid.TrustDomain
	bundle *x509bundle.Bundle
}

// serverFlags registers the flags that make a server and returns its reader.
func serverFlags(flags *flag.FlagSet) func() (server, error) {
	addr := flags.String("server", "", "host:port of the server's TCP API")
	domain := flags.String("trust-domain", "", "trust domain name")
	bundle := flags.String("bundle", "", "PEM file with the trust bundle")
	return func() (server, error) {
		if err := required(flags, "server", "trust-domain", "bundle"); err != nil {
			return server{}, err
		}
		td, err := spiffeid.TrustDomainFromString(*domain)
		if err != nil {
			return server{}, err
		}
		authorities, err := x509bundle.Load(td, *bundle)
		if err != nil {
			return server{}, err
		}
		return server{*addr, td, authorities}, nil
	}
}

// id is the SPIFFE ID the server must present.
func (s server) id() spiffeid.ID {
	return spiffeid.RequireFromPath(s.domain, "/spire/server")
}

// anonymous opens a connection without a client certificate.
func (s server) anonymous() (*grpc.ClientConn, error) {
	return s.dial(tlsconfig.TLSClientConfig(s.bundle, tlsconfig.AuthorizeID(s.id())))
}

// as opens a connection that presents an SVID.
func (s server) as(svid *x509svid.SVID) (*grpc.ClientConn, error) {
	return s.dial(tlsconfig.MTLSClientConfig(svid, s.bundle, tlsconfig.AuthorizeID(s.id())))
}

func (s server) dial(config *tls.Config) (*grpc.ClientConn, error) {
	return grpc.NewClient("passthrough:///"+s.addr, grpc.WithTransportCredentials(credentials.NewTLS(config)))
}

// attestation is one run of AttestAgent: what is sent first, and what answers
// the challenges. A nil answer means that no challenge may come.
type attestation struct {
	method  string
	payload []byte
	answer  func(challenge []byte) ([]byte, error)
}

// attested is a node that has been let in.
type attested struct {
	svid         *x509svid.SVID
	reattestable bool
}

// attest attests with a fresh key and verifies what comes back.
func (s server) attest(ctx context.Context, a attestation) (*attested, error) {
	key, err := newKey()
	if err != nil {
		return nil, err
	}
	csr, err := newCSR(key)
	if err != nil {
		return nil, err
	}
	result, err := s.attestRaw(ctx, &agentv1.AttestAgentRequest_Params{
		Data:   &types.AttestationData{Type: a.method, Payload: a.payload},
		Params: &agentv1.AgentX509SVIDParams{Csr: csr},
	}, a.answer)
	if err != nil {
		return nil, err
	}
	svid, err := s.accept(result.GetSvid(), key)
	if err != nil {
		return nil, fmt.Errorf("judge the agent's SVID: %w", err)
	}
	return &attested{svid, result.GetReattestable()}, nil
}

// attestRaw sends params as they are, however malformed.
func (s server) attestRaw(ctx context.Context, params *agentv1.AttestAgentRequest_Params, answer func([]byte) ([]byte, error)) (*agentv1.AttestAgentResponse_Result, error) {
	conn, err := s.anonymous()
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stream, err := agentv1.NewAgentClient(conn).AttestAgent(ctx)
	if err != nil {
		return nil, err
	}
	// A failed Send is explained by the next Recv.
	_ = stream.Send(&agentv1.AttestAgentRequest{Step: &agentv1.AttestAgentRequest_Params_{Params: params}})
	for {
		response, err := stream.Recv()
		if err != nil {
			return nil, err
		}
		switch step := response.GetStep().(type) {
		case *agentv1.AttestAgentResponse_Result_:
			return step.Result, nil
		case *agentv1.AttestAgentResponse_Challenge:
			if answer == nil {
				return nil, errors.New("the server sent a challenge where none was expected")
			}
			reply, err := answer(step.Challenge)
			if err != nil {
				return nil, err
			}
			_ = stream.Send(&agentv1.AttestAgentRequest{Step: &agentv1.AttestAgentRequest_ChallengeResponse{ChallengeResponse: reply}})
		default:
			return nil, fmt.Errorf("the server answered with step %T", step)
		}
	}
}

// accept judges an SVID the server issued for key: it must verify against the
// bundle and carry the ID, the expiry and the public key it is announced with.
func (s server) accept(issued *types.X509SVID, key crypto.Signer) (*x509svid.SVID, error) {
	chain, err := parseChain(issued)
	if err != nil {
		return nil, err
	}
	id, _, err := x509svid.Verify(chain, s.bundle)
	if err != nil {
		return nil, err
	}
	leaf := chain[0]
	public, ok := leaf.PublicKey.(*ecdsa.PublicKey)
	switch {
	case id.String() != idString(issued.GetId()):
		return nil, fmt.Errorf("announced as %s, says %s", idString(issued.GetId()), id)
	case issued.GetExpiresAt() != leaf.NotAfter.Unix():
		return nil, fmt.Errorf("announced to expire at %d, expires at %d", issued.GetExpiresAt(), leaf.NotAfter.Unix())
	case !ok || !public.Equal(key.Public()):
		return nil, errors.New("carries a public key that was not asked for")
	case leaf.IsCA:
		return nil, errors.New("is a CA certificate")
	case len(leaf.URIs) != 1:
		return nil, fmt.Errorf("carries %d URI SANs", len(leaf.URIs))
	case leaf.KeyUsage&x509.KeyUsageDigitalSignature == 0 || leaf.KeyUsage&(x509.KeyUsageCertSign|x509.KeyUsageCRLSign) != 0:
		return nil, fmt.Errorf("carries key usage %b", leaf.KeyUsage)
	}
	for _, authority := range s.bundle.X509Authorities() {
		for _, cert := range chain {
			if cert.Equal(authority) {
				return nil, errors.New("the chain contains a root")
			}
		}
	}
	return &x509svid.SVID{ID: id, Certificates: chain, PrivateKey: key}, nil
}

func parseChain(issued *types.X509SVID) ([]*x509.Certificate, error) {
	if len(issued.GetCertChain()) == 0 {
		return nil, errors.New("the chain is empty")
	}
	var chain []*x509.Certificate
	for _, der := range issued.GetCertChain() {
		cert, err := x509.ParseCertificate(der)
		if err != nil {
			return nil, err
		}
		chain = append(chain, cert)
	}
	return chain, nil
}

func newKey() (*ecdsa.PrivateKey, error) {
	return ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
}

// newCSR makes a DER certificate request with the given URI SANs.
func newCSR(key crypto.Signer, uris ...string) ([]byte, error) {
	template := &x509.CertificateRequest{}
	for _, text := range uris {
		uri, err := url.Parse(text)
		if err != nil {
			return nil, err
		}
		template.URIs = append(template.URIs, uri)
	}
	return x509.CreateCertificateRequest(rand.Reader, template, key)
}

func joinToken(token string) attestation {
	return attestation{method: "join_token", payload: []byte(token)}
}

// x509pop is a certificate, its chain and its key, as provisioned to a node.
type x509pop struct {
	leaf  *x509.Certificate
	chain [][]byte
	key   crypto.Signer
}

func loadX509pop(certFile, keyFile, intermediatesFile string) (*x509pop, error) {
	pop := &x509pop{}
	for _, file := range []string{certFile, intermediatesFile} {
		if file == "" {
			continue
		}
		text, err := os.ReadFile(file)
		if err != nil {
			return nil, err
		}
		for block, rest := pem.Decode(text); block != nil; block, rest = pem.Decode(rest) {
			if block.Type == "CERTIFICATE" {
				pop.chain = append(pop.chain, block.Bytes)
			}
		}
	}
	if len(pop.chain) == 0 {
		return nil, fmt.Errorf("%s holds no certificate", certFile)
	}
	var err error
	if pop.leaf, err = x509.ParseCertificate(pop.chain[0]); err != nil {
		return nil, err
	}
	pop.key, err = loadKey(keyFile)
	return pop, err
}

func loadKey(file string) (crypto.Signer, error) {
	text, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}
	for block, rest := pem.Decode(text); block != nil; block, rest = pem.Decode(rest) {
		var key any
		switch block.Type {
		case "PRIVATE KEY":
			key, err = x509.ParsePKCS8PrivateKey(block.Bytes)
		case "EC PRIVATE KEY":
			key, err = x509.ParseECPrivateKey(block.Bytes)
		case "RSA PRIVATE KEY":
			key, err = x509.ParsePKCS1PrivateKey(block.Bytes)
		default:
			continue
		}
		if err != nil {
			return nil, err
		}
		if signer, ok := key.(crypto.Signer); ok {
			return signer, nil
		}
	}
	return nil, fmt.Errorf("%s holds no private key", file)
}

// The JSON messages of SPIRE's x509pop; byte strings are standard base64.
type popEvidence struct {
	Certificates [][]byte `json:"certificates"`
}

type popChallenge struct {
	RSA   *popNonce `json:"rsa_signature,omitempty"`
	ECDSA *popNonce `json:"ecdsa_signature,omitempty"`
}

type popNonce struct {
	Nonce []byte `json:"nonce"`
}

type popResponse struct {
	RSA   *popRSA   `json:"rsa_signature,omitempty"`
	ECDSA *popECDSA `json:"ecdsa_signature,omitempty"`
}

type popRSA struct {
	Nonce     []byte `json:"nonce"`
	Signature []byte `json:"signature"`
}

type popECDSA struct {
	Nonce []byte `json:"nonce"`
	R     []byte `json:"r"`
	S     []byte `json:"s"`
}

const popNonceBytes = 32

func (p *x509pop) attestation() (attestation, error) {
	payload, err := json.Marshal(popEvidence{p.chain})
	return attestation{"x509pop", payload, p.respond}, err
}

// respond signs SHA-256 of the server's nonce followed by a nonce of ours.
func (p *x509pop) respond(text []byte) ([]byte, error) {
	var challenge popChallenge
	if err := json.Unmarshal(text, &challenge); err != nil {
		return nil, fmt.Errorf("read challenge: %w", err)
	}
	var theirs []byte
	switch {
	case challenge.RSA != nil && challenge.ECDSA == nil:
		theirs = challenge.RSA.Nonce
	case challenge.ECDSA != nil && challenge.RSA == nil:
		theirs = challenge.ECDSA.Nonce
	default:
		return nil, errors.New("the challenge does not ask for exactly one signature")
	}
	if len(theirs) != popNonceBytes {
		return nil, fmt.Errorf("the challenge's nonce has %d bytes", len(theirs))
	}
	ours := make([]byte, popNonceBytes)
	if _, err := rand.Read(ours); err != nil {
		return nil, err
	}
	digest := sha256.Sum256(append(append([]byte{}, theirs...), ours...))

	if challenge.RSA != nil {
		signature, err := p.key.Sign(rand.Reader, digest[:], &rsa.PSSOptions{SaltLength: rsa.PSSSaltLengthAuto, Hash: crypto.SHA256})
		if err != nil {
			return nil, err
		}
		return json.Marshal(popResponse{RSA: &popRSA{ours, signature}})
	}
	signature, err := p.key.Sign(rand.Reader, digest[:], crypto.SHA256)
	if err != nil {
		return nil, err
	}
	var point struct{ R, S *big.Int }
	if _, err := asn1.Unmarshal(signature, &point); err != nil {
		return nil, fmt.Errorf("the key made no ECDSA signature: %w", err)
	}
	return json.Marshal(popResponse{ECDSA: &popECDSA{ours, point.R.Bytes(), point.S.Bytes()}})
}

func idString(id *types.SPIFFEID) string {
	return "spiffe://" + id.GetTrustDomain() + id.GetPath()
}

func protoID(id spiffeid.ID) *types.SPIFFEID {
	return &types.SPIFFEID{TrustDomain: id.TrustDomain().Name(), Path: id.Path()}
}

func runNode(ctx context.Context, args []string) error {
	if len(args) == 0 || (args[0] != "join-token" && args[0] != "x509pop") {
		return errors.New("usage: interop node join-token|x509pop FLAGS")
	}
	flags := flag.NewFlagSet("node "+args[0], flag.ContinueOnError)
	readServer := serverFlags(flags)
	var token, cert, key, intermediates string
	if args[0] == "join-token" {
		flags.StringVar(&token, "token", "", "join token")
	} else {
		flags.StringVar(&cert, "cert", "", "PEM file with the node's certificate")
		flags.StringVar(&key, "key", "", "PEM file with its key")
		flags.StringVar(&intermediates, "intermediates", "", "PEM file with intermediate certificates")
	}
	if err := flags.Parse(args[1:]); err != nil {
		return err
	}
	srv, err := readServer()
	if err != nil {
		return err
	}
	how := joinToken(token)
	if args[0] == "x509pop" {
		pop, err := loadX509pop(cert, key, intermediates)
		if err != nil {
			return err
		}
		if how, err = pop.attestation(); err != nil {
			return err
		}
	}

	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	node, err := srv.attest(ctx, how)
	if err != nil {
		return err
	}
	conn, err := srv.as(node.svid)
	if err != nil {
		return err
	}
	defer conn.Close()
	if _, err := agentv1.NewAgentClient(conn).PostStatus(ctx, &agentv1.PostStatusRequest{AgentVersion: "interop"}); err != nil {
		return fmt.Errorf("post status: %w", err)
	}
	entries, err := entryv1.NewEntryClient(conn).GetAuthorizedEntries(ctx, &entryv1.GetAuthorizedEntriesRequest{})
	if err != nil {
		return fmt.Errorf("get authorized entries: %w", err)
	}
	may := []string{}
	for _, entry := range entries.GetEntries() {
		may = append(may, idString(entry.GetSpiffeId()))
	}
	leaf := node.svid.Certificates[0]
	return emit(map[string]any{
		"spiffe_id":          node.svid.ID.String(),
		"serial":             leaf.SerialNumber.Text(16),
		"not_after":          instant(leaf.NotAfter),
		"reattestable":       node.reattestable,
		"authorized_entries": may,
	})
}

// newNamedCSR makes a DER certificate request with one SPIFFE ID and DNS names.
func newNamedCSR(key crypto.Signer, id spiffeid.ID, names []string) ([]byte, error) {
	template := &x509.CertificateRequest{URIs: []*url.URL{id.URL()}, DNSNames: names}
	return x509.CreateCertificateRequest(rand.Reader, template, key)
}
