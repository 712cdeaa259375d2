/*
 * Java's TLS (JSSE), as dcm4chee and other archives in Java have it: a port for each way to ask for a client certificate.
 *
 *     java JsseServer.java identity.p12 authority.pem ACCEPT ANSWER RELEASE need:TLSv1.3 want:TLSv1.2 ...
 *
 * The password of the key store is "password"; ACCEPT, ANSWER and RELEASE are the PDUs, in hex, that answer an A-ASSOCIATE-RQ, a
 * P-DATA-TF and an A-RELEASE-RQ. Prints the port of each mode on a line; ends when its standard input does.
 */

import java.io.DataInputStream;
import java.io.FileInputStream;
import java.io.IOException;
import java.net.InetAddress;
import java.security.KeyStore;
import java.security.cert.CertificateFactory;
import java.util.HexFormat;
import java.util.Map;
import javax.net.ssl.KeyManagerFactory;
import javax.net.ssl.SSLContext;
import javax.net.ssl.SSLServerSocket;
import javax.net.ssl.SSLSocket;
import javax.net.ssl.TrustManagerFactory;

public class JsseServer {
    private static Map<Integer, byte[]> answers;

    public static void main(String[] args) throws Exception {
        HexFormat hex = HexFormat.of();
        answers = Map.of(1, hex.parseHex(args[2]), 4, hex.parseHex(args[3]), 5, hex.parseHex(args[4]));
        KeyStore identity = KeyStore.getInstance("PKCS12");
        identity.load(new FileInputStream(args[0]), "password".toCharArray());
        KeyManagerFactory keys = KeyManagerFactory.getInstance("PKIX");
        keys.init(identity, "password".toCharArray());
        KeyStore trusted = KeyStore.getInstance("PKCS12");
        trusted.load(null, null);
        CertificateFactory certificates = CertificateFactory.getInstance("X.509");
        trusted.setCertificateEntry("authority", certificates.generateCertificate(new FileInputStream(args[1])));
        TrustManagerFactory trust = TrustManagerFactory.getInstance("PKIX");
        trust.init(trusted);
        SSLContext context = SSLContext.getInstance("TLS");
        context.init(keys.getKeyManagers(), trust.getTrustManagers(), null);
        for (int i = 5; i < args.length; i++) {
            String[] mode = args[i].split(":");
            SSLServerSocket listener = (SSLServerSocket)
                    context.getServerSocketFactory().createServerSocket(0, 50, InetAddress.getByName("127.0.0.1"));
            listener.setEnabledProtocols(new String[] {mode[1]});
            if (mode.length > 2) {
                listener.setEnabledCipherSuites(new String[] {mode[2]});
            }
            listener.setWantClientAuth(mode[0].equals("want"));
            if (mode[0].equals("need")) {
                listener.setNeedClientAuth(true);
            }
            System.out.println(listener.getLocalPort());
            Thread thread = new Thread(() -> serve(listener));
            thread.setDaemon(true);
            thread.start();
        }
        while (System.in.read() >= 0) {
        }
    }

    private static void serve(SSLServerSocket listener) {
        while (true) {
            try (SSLSocket peer = (SSLSocket) listener.accept()) {
                peer.setSoTimeout(5000);
                DataInputStream in = new DataInputStream(peer.getInputStream());
                while (true) {
                    int type = in.readUnsignedByte();
                    in.readUnsignedByte();
                    in.readFully(new byte[in.readInt()]);
                    peer.getOutputStream().write(answers.get(type));
                }
            } catch (IOException | RuntimeException ended) {
                // a handshake that failed, or the end of an association: on to the next
            }
        }
    }
}
