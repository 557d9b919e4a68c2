// A talker and a listener for Fast DDS 2: chatter talk, chatter listen.
//
// It runs in an enclave, the folder with a node's files. The topic and its type have the names
// that ROS 2 gives to /chatter and std_msgs/String. Environment variables:
//
//     FASTRTPS_DEFAULT_PROFILES_FILE   the XML file with the profile "enclave"
//     SROS_PASSPHRASE                  the pass phrase of key.pem, if that is encrypted
//     ROS_DOMAIN_ID                    the domain; 0 if it is not set

#include <chrono>
#include <cstdlib>
#include <iostream>
#include <regex>
#include <string>
#include <thread>

#include <fastcdr/Cdr.h>
#include <fastdds/dds/domain/DomainParticipant.hpp>
#include <fastdds/dds/domain/DomainParticipantFactory.hpp>
#include <fastdds/dds/domain/DomainParticipantListener.hpp>
#include <fastdds/dds/log/Log.hpp>
#include <fastdds/dds/publisher/DataWriter.hpp>
#include <fastdds/dds/publisher/Publisher.hpp>
#include <fastdds/dds/subscriber/DataReader.hpp>
#include <fastdds/dds/subscriber/DataReaderListener.hpp>
#include <fastdds/dds/subscriber/SampleInfo.hpp>
#include <fastdds/dds/subscriber/Subscriber.hpp>
#include <fastdds/dds/topic/TopicDataType.hpp>

using namespace eprosima::fastdds::dds;
using eprosima::fastcdr::Cdr;
using eprosima::fastcdr::FastBuffer;
using eprosima::fastrtps::rtps::InstanceHandle_t;
using eprosima::fastrtps::rtps::ParticipantAuthenticationInfo;
using eprosima::fastrtps::rtps::SerializedPayload_t;

constexpr uint32_t LONGEST = 256;   // octets of a message, its header included

// How a std::string becomes a message, and a message a std::string.
class Text : public TopicDataType {
public:
    Text() {
        setName("std_msgs::msg::dds_::String_");
        m_typeSize = LONGEST;
    }

    bool serialize(void* text, SerializedPayload_t* payload) override {
        FastBuffer buffer(reinterpret_cast<char*>(payload->data), payload->max_size);
        Cdr cdr(buffer, Cdr::DEFAULT_ENDIAN, Cdr::DDS_CDR);
        cdr.serialize_encapsulation();
        cdr << *static_cast<std::string*>(text);
        payload->encapsulation = CDR_LE;
        payload->length = static_cast<uint32_t>(cdr.getSerializedDataLength());
        return true;
    }

    bool deserialize(SerializedPayload_t* payload, void* text) override {
        FastBuffer buffer(reinterpret_cast<char*>(payload->data), payload->length);
        Cdr cdr(buffer, Cdr::DEFAULT_ENDIAN, Cdr::DDS_CDR);
        cdr.read_encapsulation();
        cdr >> *static_cast<std::string*>(text);
        return true;
    }

    std::function<uint32_t()> getSerializedSizeProvider(void*) override {
        return [] { return LONGEST; };
    }

    void* createData() override { return new std::string; }
    void deleteData(void* text) override { delete static_cast<std::string*>(text); }
    bool getKey(void*, InstanceHandle_t*, bool) override { return false; }
};

// Prints what becomes of each other participant.
class Door : public DomainParticipantListener {
    void onParticipantAuthentication(
            DomainParticipant*, ParticipantAuthenticationInfo&& info) override {
        if (info.status == ParticipantAuthenticationInfo::AUTHORIZED_PARTICIPANT) {
            std::cout << "authenticated" << std::endl;
        } else {
            std::cout << "refused" << std::endl;
        }
    }
};

// Prints each message that arrives.
class Ear : public DataReaderListener {
    void on_data_available(DataReader* reader) override {
        std::string text;
        SampleInfo info;
        while (reader->take_next_sample(&text, &info) == ReturnCode_t::RETCODE_OK) {
            if (info.valid_data) {
                std::cout << "read: [" << text << "]" << std::endl;
            }
        }
    }
};

// Ends the program at once, because the library's threads may still run.
[[noreturn]] void fail(const std::string& what) {
    Log::Flush();
    std::cerr << "chatter: error: " << what << std::endl;
    std::_Exit(1);
}

DomainParticipant* join(Door& door) {
    auto* factory = DomainParticipantFactory::get_instance();
    factory->load_profiles();

    // The default profile would also make a participant, but one without security.
    DomainParticipantQos qos;
    auto found = factory->get_participant_qos_from_profile("enclave", qos);
    if (found != ReturnCode_t::RETCODE_OK) {
        fail("no profile \"enclave\": set FASTRTPS_DEFAULT_PROFILES_FILE");
    }

    // The pass phrase comes from the environment, so that it is in no file.
    const char* phrase = std::getenv("SROS_PASSPHRASE");
    if (phrase != nullptr) {
        qos.properties().properties().emplace_back(
            "dds.sec.auth.builtin.PKI-DH.password", phrase);
    }

    int domain = 0;
    const char* number = std::getenv("ROS_DOMAIN_ID");
    if (number != nullptr) {
        domain = std::atoi(number);
    }
    return factory->create_participant(domain, qos, &door, StatusMask::none());
}

void talk(DomainParticipant* participant, Topic* topic) {
    Publisher* publisher = participant->create_publisher(PUBLISHER_QOS_DEFAULT);
    DataWriter* writer = publisher->create_datawriter(topic, DATAWRITER_QOS_DEFAULT);
    if (writer == nullptr) {
        fail("this node may not publish on rt/chatter");
    }
    std::string text = "hola";
    while (true) {
        writer->write(&text);
        std::this_thread::sleep_for(std::chrono::milliseconds(100));
    }
}

void listen(DomainParticipant* participant, Topic* topic) {
    Ear ear;
    Subscriber* subscriber = participant->create_subscriber(SUBSCRIBER_QOS_DEFAULT);
    DataReader* reader = subscriber->create_datareader(topic, DATAREADER_QOS_DEFAULT, &ear);
    if (reader == nullptr) {
        fail("this node may not subscribe to rt/chatter");
    }
    while (true) {
        std::this_thread::sleep_for(std::chrono::hours(1));   // a thread of the library reads
    }
}

int main(int count, char** arguments) {
    std::string role;
    if (count == 2) {
        role = arguments[1];
    }
    if (role != "talk" && role != "listen") {
        std::cerr << "usage: chatter talk | chatter listen" << std::endl;
        return 2;
    }

    // Warnings say why a participant is refused. Those of SECURITY_CRYPTO only say that the
    // exchange of keys with a new participant is not over yet.
    Log::SetVerbosity(Log::Kind::Warning);
    Log::SetCategoryFilter(std::regex("^(?!SECURITY_CRYPTO)"));

    Door door;
    DomainParticipant* participant = join(door);
    if (participant == nullptr) {
        fail("no participant: look at the lines above");
    }
    TypeSupport type(new Text);
    type.register_type(participant);
    Topic* topic =
        participant->create_topic("rt/chatter", type.get_type_name(), TOPIC_QOS_DEFAULT);
    if (topic == nullptr) {
        fail("no topic rt/chatter: look at the lines above");
    }
    if (role == "talk") {
        talk(participant, topic);
    } else {
        listen(participant, topic);
    }
}
